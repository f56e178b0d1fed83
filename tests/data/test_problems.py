"""The list of problems: table of rules, terminal lines, file."""

import json
from pathlib import Path

import pytest

from fastnas.data import problems as module
from fastnas.data.problems import RULES, printable, problem, summarize, write_problems
from fastnas.errors import InputError


def test_table_of_the_docstring_is_the_table_that_is_applied():
    rows = [line.strip("|").split("|") for line in module.__doc__.splitlines() if line.startswith("| ")][1:]
    assert {row[0].strip(): row[2].strip() for row in rows} == RULES


def test_five_thousand_problems_make_one_line_for_each_kind():
    found = [problem("box-outside", f"{i}.jpg", i, "x 9") for i in range(5000)] + [problem("no-boxes", "a.png", 7, "")]
    assert summarize(found) == [
        "5000 x box-outside (box dropped): 0.jpg id 0, x 9; 1.jpg id 1, x 9; and 4998 more",
        "1 x no-boxes (image kept as a negative): a.png id 7",
    ]
    assert summarize([]) == []


def test_file_holds_every_problem(tmp_path: Path):
    found = [problem("file-missing", "a\ud800\n.jpg", 3, "2 boxes"), problem("image-unknown", "x.json", None, "")]
    write_problems(tmp_path / "problems.jsonl", found)
    rows = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["id"], row["action"]) for row in rows] == [
        ("file-missing", 3, "image left out with its boxes"),
        ("image-unknown", None, "box dropped"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["problems.jsonl"]


def test_unwritable_file_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="cannot write the problems to"):
        write_problems(tmp_path / "no" / "problems.jsonl", [])


def test_names_are_shown_on_one_printable_line():
    assert printable("a\x1b[31m\n\ud800") == "a\\x1b[31m\\n\\ud800"
    assert len(printable("x" * 5000)) == 200
