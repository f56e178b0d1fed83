"""`fastnas search` as people run it: real processes, real trainings, killed and resumed; and errors they can act on."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastnas.blueprint import parse
from fastnas.cli import main
from fastnas.latency import Oracle
from fastnas.search import open_study
from fastnas.search.record import FINISHED

ROOT = Path(__file__).parents[2]
ANCESTOR = "64x80/basic:1-2,base=8,stem=3x3/fpn:16/rpn:20,scale=4,topk=50/rcnn:16/classes:3"
TINY = f"""
space: spnas
candidates: 9
finalists: 2
ancestor: {ANCESTOR}
epochs: {{ancestor: 1, child: 1, final: 1}}
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {**os.environ, "PYTHONPATH": str(ROOT), "FASTNAS_CACHE": str(tmp_path_factory.mktemp("cache")), "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, shapes):
    config = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.write_text(TINY)
    return ["search", "--space", "spnas", "--config", str(config), "--data", str(shapes)]


def start(arguments, environment, **options):
    command = [sys.executable, "-c", "from fastnas.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def run(arguments, environment, **options):
    process = start(arguments, environment, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def rows(folder):
    with sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True) as db:
        return db.execute("SELECT id, text, ap, sha256, ended FROM candidates WHERE state = 'finished' ORDER BY id").fetchall()


def wait_for_finished(folder, count, process):
    """Waits until `count` candidates are finished while the process runs."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the search ended early: {process.communicate()}"
        if (folder / "study.db").exists() and len(rows(folder)) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("the search took too long")


@pytest.fixture(scope="module")
def killed_and_resumed(arguments, environment, tmp_path_factory):
    """A study that was killed with SIGKILL after two candidates, then with Ctrl-C, then went on to its end."""
    folder = tmp_path_factory.mktemp("studies") / "s"
    process = start([*arguments, "--out", folder], environment)
    wait_for_finished(folder, 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    after_kill = rows(folder)
    process = start(["search", "--space", "spnas", "--out", folder, "--resume"], environment)
    wait_for_finished(folder, 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    interrupted = process.returncode, err, rows(folder)
    end = run(["search", "--space", "spnas", "--out", folder, "--resume", "--json"], environment)
    return folder, after_kill, interrupted, end


def test_a_killed_search_goes_on_and_repeats_nothing(killed_and_resumed):
    folder, after_kill, _, (code, out, err) = killed_and_resumed
    assert code == 0, err
    end = rows(folder)
    assert end[: len(after_kill)] == after_kill, "finished candidates are the same rows with the same weights"
    assert len(end) == 9 and len({text for _, text, *_ in end}) == 9
    assert "resumed: " in err


def test_ctrl_c_leaves_a_study_that_says_how_to_go_on(killed_and_resumed):
    folder, _, (code, err, _), _ = killed_and_resumed
    assert code == 130
    assert f"fastnas search --space spnas --out {folder} --resume" in err
    assert "Traceback" not in err


def test_the_result_is_on_stdout_and_in_the_study(killed_and_resumed):
    folder, _, _, (_, out, err) = killed_and_resumed
    result = json.loads(out)
    assert result["study"] == str(folder) and Path(result["report"]).is_file()
    assert result["pareto"] == json.loads((folder / "pareto.json").read_text()) != []
    for entry in result["pareto"]:
        assert (folder / entry["weights"]).is_file() and entry["latency_ms"] > 0 and 0 <= entry["ap"] <= 1
    for record in (folder / "candidates").iterdir():
        assert {"blueprint.json", "metrics.jsonl", "weights.safetensors"} <= {file.name for file in record.iterdir()}
    assert "#8 " in err and "AP " in err, "without a terminal, progress is plain lines on stderr"
    assert "\x1b[" not in err + out


def test_a_finished_study_has_nothing_to_do_and_prints_its_table(killed_and_resumed, environment):
    folder = killed_and_resumed[0]
    before = rows(folder)
    code, out, err = run(["search", "--space", "spnas", "--out", folder, "--resume"], environment)
    assert code == 0 and rows(folder) == before
    assert "AP50" in out and str(folder / "report.html") in out


def test_the_parallel_level_goes_on_from_the_winner_of_the_serial_one(arguments, environment, tmp_path, killed_and_resumed):
    folder = killed_and_resumed[0]
    winner = json.loads((folder / "pareto.json").read_text())[-1]
    changes = [f"ancestor={winner['text']}", "candidates=2", "finalists=1", "epochs={ancestor: 1, child: 1, final: 0}"]
    command = ["search", "--space", "spnas", *arguments[-2:], *(part for change in changes for part in ("--set", change))]
    code, _, err = run(
        [*command, "--set", "level=parallel", "--init", folder / winner["weights"], "--out", tmp_path / "s"], environment
    )
    assert code == 0, err
    with open_study(tmp_path / "s") as study:
        ancestor, child = (record for record in study.records() if record.state == FINISHED)
    assert ancestor.blueprint.text == winner["text"] and child.lineage.blocks
    assert child.blueprint.backbone.parallel and child.blueprint.backbone.code == ancestor.blueprint.backbone.code
    assert child.macs > ancestor.macs and child.params > ancestor.params


def test_a_candidate_over_the_latency_limit_is_never_trained(arguments, environment, tmp_path, killed_and_resumed):
    """The limit lies little over the ancestor and every child has three blocks more, so all children are rejected."""
    with Oracle.open(Path(environment["FASTNAS_CACHE"]) / "latency.db") as oracle:
        limit = 1.05 * oracle(parse(ANCESTOR)).predicted
    rules = "rules={p_expand: 1.0, p_swap: 0, p_add_stage: 0, operations: 3, max_blocks: 5}"
    changes = ["--max-latency", limit, "--set", "finalists=1", "--set", "epochs.final=0", "--set", rules]
    code, _, err = run([*arguments, *changes, "--out", tmp_path / "s"], environment)
    assert code == 0, err
    with sqlite3.connect(tmp_path / "s" / "study.db") as db:
        states = db.execute("SELECT id, state, predicted_ms, reason FROM candidates").fetchall()
    rejected = [row for row in states if row[1] == "rejected"]
    assert rejected, "no candidate was over the limit: the test compares nothing"
    assert all(ms > limit and "latency_ms" in reason for _, _, ms, reason in rejected)
    assert all(ms <= limit for _, state, ms, _ in states if state == "finished")
    assert not any((tmp_path / "s" / "candidates" / str(id)).exists() for id, *_ in rejected)


def bad_inputs(folder, study, data):
    """(name, arguments after `search`, words of the message)"""
    tiny = "64x80/basic:1-2,base=8/fpn:16/rpn:20/rcnn:16/classes:3"
    empty = folder / "empty"
    empty.mkdir()
    cut = folder / "cut"  # headers are whole, pixels are not
    shutil.copytree(data, cut)
    for image in (cut / "images").rglob("val_*.jpg"):
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    out = ["--out", folder / "out"]
    return [
        ("unknown character", ["--set", f"ancestor={tiny.replace('1-2', '1-x')}", *out], "character"),
        ("empty stage", ["--set", f"ancestor={tiny.replace('1-2', '1--2')}", *out], "empty stage"),
        ("no annotations", ["--data", empty, *out], str(empty)),
        ("no such data", ["--data", folder / "none", *out], str(folder / "none")),
        ("images that do not decode", ["--data", cut, *out], "none of 12 images decodes"),
        ("a folder that no system has", ["--set", 'data.root="a\\0b"', *out], "data.root"),
        ("too long a name", ["--out", "a" * 300], "name another"),
        ("unwritable", ["--out", "/proc/nothing/here"], "name another folder"),
        ("a study of another space", ["--out", study, "--resume"], "'smnas'"),
        ("a study is there", ["--out", study], "--resume"),
        ("resume of nothing", ["--out", folder / "none", "--resume"], "no study"),
        ("resume without a folder", ["--resume"], "--out"),
        ("unknown key", ["--set", "train.speed=1", *out], "train.speed"),
        ("unknown engine", ["--engine", "abacus", *out], "onnxruntime"),
        ("impossible limit", ["--set", "limits.params=10", *out], "ancestor"),
    ]


def test_bad_input_gives_one_line_exit_code_2_and_no_harm(
    tmp_path, environment, killed_and_resumed, shapes, monkeypatch, capfd
):
    """All in this process: a process for each would take minutes."""
    monkeypatch.setenv("FASTNAS_CACHE", environment["FASTNAS_CACHE"])
    study = tmp_path / "study"
    shutil.copytree(killed_and_resumed[0], study)
    with sqlite3.connect(study / "study.db") as db:
        db.execute("UPDATE meta SET value = '\"smnas\"' WHERE key = 'space'")
    db.close()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    files = [path for path in study.rglob("*") if path.suffix in (".db", ".json", ".jsonl", ".yaml", ".html", ".safetensors")]
    before = {path: path.read_bytes() for path in files}
    for name, arguments, words in bad_inputs(tmp_path, study, shapes):
        data = [] if "--data" in arguments or "data.root" in str(arguments) or "--resume" in arguments else ["--data", shapes]
        with pytest.raises(SystemExit) as exit:
            main(["search", "--space", "spnas", *map(str, [*data, *arguments])])
        out, err = capfd.readouterr()
        lines = err.splitlines()
        assert exit.value.code == 2, f"{name}: {err}"
        assert len(lines) == 1 and words in lines[0] and out == "", f"{name}: {err}"
        assert not (tmp_path / "out").exists() and not list(work.iterdir()), f"{name}: something was written"
    assert before == {path: path.read_bytes() for path in before}


def test_resuming_with_other_settings_is_refused(killed_and_resumed, environment):
    folder = killed_and_resumed[0]
    command = ["search", "--space", "spnas", "--out", folder, "--resume", "--set", "train.lr=0.5"]
    code, _, err = run(command, environment)
    assert code == 2 and "train.lr" in err


def resume_in_process(folder, environment, monkeypatch, capfd):
    """Exit code and stderr lines of a resume, run in this process."""
    monkeypatch.setenv("FASTNAS_CACHE", environment["FASTNAS_CACHE"])
    with pytest.raises(SystemExit) as exit:
        main(["search", "--space", "spnas", "--out", str(folder), "--resume"])
    return exit.value.code, capfd.readouterr().err.splitlines()


def test_latencies_of_two_machines_are_never_mixed(killed_and_resumed, environment, tmp_path, monkeypatch, capfd):
    shutil.copytree(killed_and_resumed[0], tmp_path / "s")
    with sqlite3.connect(tmp_path / "s" / "study.db") as db:
        (text,) = db.execute("SELECT value FROM meta WHERE key = 'environment'").fetchone()
        other = json.dumps({**json.loads(text), "device": "another processor"})
        db.execute("UPDATE meta SET value = ? WHERE key = 'environment'", (other,))
    db.close()
    code, lines = resume_in_process(tmp_path / "s", environment, monkeypatch, capfd)
    assert code == 2 and len(lines) == 1 and "another environment (device)" in lines[0]


def test_a_refused_resume_changes_nothing(killed_and_resumed, environment, shapes, tmp_path, monkeypatch, capfd):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    shutil.copytree(killed_and_resumed[0], tmp_path / "s")
    with sqlite3.connect(tmp_path / "s" / "study.db") as db:
        (text,) = db.execute("SELECT value FROM meta WHERE key = 'config'").fetchone()
        config = json.loads(text)
        config["data"]["root"] = str(data)
        db.execute("UPDATE meta SET value = ? WHERE key = 'config'", (json.dumps(config),))
        db.execute("UPDATE candidates SET state = 'running' WHERE id = 1")
    db.close()
    file = data / "annotations" / "instances_val.json"
    file.write_text(file.read_text() + " ")
    (tmp_path / "s" / "candidates" / "99").mkdir()
    code, lines = resume_in_process(tmp_path / "s", environment, monkeypatch, capfd)
    assert code == 2 and len(lines) == 1 and "changed since" in lines[0]
    assert (tmp_path / "s" / "candidates" / "99").is_dir(), "recovery waits until everything is checked"


@pytest.mark.parametrize("split", ["train", "val"])
def test_data_without_any_box_is_refused(arguments, environment, shapes, tmp_path, monkeypatch, capfd, split):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    file = data / "annotations" / f"instances_{split}.json"
    document = json.loads(file.read_text())
    for annotation in document["annotations"]:
        annotation["bbox"][2] = 0
    file.write_text(json.dumps(document))
    monkeypatch.setenv("FASTNAS_CACHE", environment["FASTNAS_CACHE"])
    with pytest.raises(SystemExit) as exit:
        main([*arguments[:-1], str(data), "--out", str(tmp_path / "out")])
    assert exit.value.code == 2 and "no usable box" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
