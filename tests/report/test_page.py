import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fastnas.blueprint import Lineage, parse
from fastnas.report import write_report
from fastnas.search.record import REJECTED
from fastnas.search.study import Study
from tests.report.studies import ANCESTOR, CONFIG, candidate, finish, finish_final

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "img", "br", "hr", "input", "base", "source", "embed", "area", "col", "track", "wbr"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Page(HTMLParser):
    """What a browser would see of a page: elements with attributes, texts by element, whether all elements are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == [], "elements left open"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        for tag in self.open:
            self.texts.setdefault(tag, []).append(data)

    def text(self, tag="body") -> str:
        return "".join(self.texts.get(tag, []))

    def named(self, *tags: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def render(study) -> Page:
    return Page(write_report(study).read_text())


def figures(page: Page) -> dict:
    blocks = [text for text in page.texts["script"] if text.startswith("{")]
    assert len(blocks) == 1
    return json.loads(blocks[0])


def candidates(page: Page) -> str:
    """Text of the page from the table of all candidates on."""
    return page.text().rpartition("All candidates")[2]


def test_nothing_is_loaded_from_elsewhere(grown):
    text = write_report(grown).read_text()
    page = Page(text)
    assert not page.named("link", "img", "iframe", "object", "embed", "base", "video", "audio", "source", "form")
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "action", "data", "xlink:href", "poster"} & attributes.keys(), tag
        assert attributes.get("href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
        assert "url(" not in (attributes.get("style") or "")
    assert "@import" not in page.text("style") and "url(" not in page.text("style")
    [policy] = [meta["content"] for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and policy.count("'sha256-") == 2
    assert text.count("plotly.js v") == 1


def test_every_candidate_is_in_the_table_and_in_the_plots(grown):
    page = render(grown)
    records = grown.records()
    assert {record.state for record in records} == {"finished", "failed", "rejected"}
    row = r'<tr[^>]*><td class="n">(\d+)</td><td><span class="state (\w+)"'
    rows = re.findall(row, (grown.folder / "report.html").read_text())
    assert rows == [(str(record.id), record.state) for record in records]
    for record in records:
        assert record.blueprint.backbone.code in candidates(page)
        assert record.reason in candidates(page)
    plotted = {text for trace in figures(page)["pareto"]["data"] for text in trace.get("text", [])}
    assert plotted == {str(record.id) for record in records if record.state == "finished"}


def test_figures_are_valid_plotly(grown):
    graph = pytest.importorskip("plotly.graph_objects")

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else "#123456" if str(value).startswith("var(") else value

    found = figures(render(grown))
    assert set(found) == {"pareto", "progress", "losses"}
    for figure in found.values():
        graph.Figure(data=plain(figure["data"]), layout=plain(figure["layout"]))  # raises for a property that is none


def test_colors_of_the_figures_are_defined(grown):
    page = render(grown)
    used = set(re.findall(r"var\((--[\w-]+)\)", page.text("script").rpartition('{"pareto"')[2] + page.text("style")))
    light, _, dark = page.text("style").partition("prefers-color-scheme: dark")
    assert used and all(f"{name}:" in light and f"{name}:" in dark for name in used)


def test_full_trainings_are_drawn_and_told(grown):
    page = render(grown)
    [finals] = [trace for trace in figures(page)["pareto"]["data"] if trace.get("name") == "after full training, measured"]
    trained = [record for record in grown.records() if record.final]
    assert sorted(zip(finals["x"], finals["y"], strict=True)) == sorted((r.final.latency_ms, r.final.ap) for r in trained)
    best = max(trained, key=lambda record: record.final.ap)
    assert f"The best AP is {best.final.ap:.3f}" in page.text()
    assert figures(page)["pareto"]["layout"]["shapes"][0]["x0"] == CONFIG["limits"]["latency_ms"]


def test_text_from_a_study_is_never_markup(tmp_path):
    config = {**CONFIG, "data": {"root": EVIL}, EVIL: EVIL}
    with Study.create(tmp_path / EVIL.replace("/", "∕"), "spnas", config) as study:
        study.set_meta("environment", {"engine": EVIL, "device": EVIL, EVIL: EVIL})
        ancestor = study.add(candidate(parse(ANCESTOR)))
        finish(study, ancestor.id, 0.4)
        child = parse(ANCESTOR.replace("11-21-21-21", "11-211-21-21"))
        child = study.add(candidate(child, Lineage(0, (EVIL,), {EVIL: EVIL})))
        finish(study, child.id, 0.5)
        finish_final(study, child, 0.6, 20.0)
        failed = study.add(candidate(parse(ANCESTOR.replace("11-21", "111-21")), Lineage(0, (EVIL, EVIL))))
        study.start(failed.id)
        study.fail(failed.id, EVIL, 1.0)
        lines = [{"phase": EVIL, "epoch": 1, "loss": 1, "losses": {EVIL: 1.0}}, {"phase": EVIL, "epoch": 2, "error": EVIL}]
        with open(study.candidate_folder(child.id) / "metrics.jsonl", "a") as handle:
            handle.writelines(json.dumps(line) + "\n" for line in lines)
        problem = {"kind": EVIL, "file": EVIL, "id": 3, "detail": EVIL, "action": EVIL, EVIL: EVIL}
        (study.folder / "data_problems.jsonl").write_text(json.dumps(problem) + "\n")
        page = render(study)
    assert len(page.named("script")) == 3 and not page.named("img")
    assert page.text().count(EVIL) > 10  # shown as text
    assert EVIL in page.text("pre") or "onerror" in page.text("pre")
    shown = json.dumps(figures(page)["pareto"]) + json.dumps([trace["name"] for trace in figures(page)["losses"]["data"]])
    assert "<img" not in shown and "<script" not in shown  # plotly.js reads a little HTML


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_young_studies(study, finished):
    codes = ("11-21-21-21", "11-211-21-21")
    for code in codes[:finished]:
        record = study.add(candidate(parse(ANCESTOR.replace("11-21-21-21", code))))
        finish(study, record.id, 0.4)
    page = render(study)
    assert bool(figures(page)) == bool(finished)
    assert ("Nothing to plot" in page.text()) != bool(finished)
    if finished == 1:
        assert "That is the ancestor itself: no child reached a higher AP." in page.text()


def test_only_rejected_and_waiting_candidates(study):
    study.add(candidate(parse(ANCESTOR)))
    rejected = candidate(parse(ANCESTOR.replace("11-21", "111-21")), Lineage(0))
    study.add(dataclasses.replace(rejected, state=REJECTED, reason="over the limit"))
    page = render(study)
    assert "There is no front yet." in page.text()
    assert "over the limit" in page.text()


def test_metrics_that_are_missing_or_damaged_are_told(grown):
    finished = [record.id for record in grown.records() if record.state == "finished"]
    (grown.candidate_folder(finished[0]) / "metrics.jsonl").unlink()
    with open(grown.candidate_folder(finished[1]) / "metrics.jsonl", "a") as handle:
        handle.write('{"phase": "search", "epoch": 1, "loss": NaN}\n{"phase": "sear')
    page = render(grown)
    assert f"No metrics.jsonl of finished candidates: {finished[0]}." in page.text()
    assert f"left out: 1 of candidate {finished[1]}." in page.text()


def test_ap_that_is_not_finite(study):
    record = study.add(candidate(parse(ANCESTOR)))
    finish(study, record.id, float("nan"))
    assert "There is no front yet." in render(study).text()


def test_data_problems_are_summed_up(grown):
    problems = [{"kind": "box-zero-size", "file": f"{i}.jpg", "id": i, "detail": "d", "action": "box dropped"} for i in range(120)]
    content = "".join(json.dumps(problem) + "\n" for problem in problems) + '{"kind'
    (grown.folder / "data_problems.jsonl").write_text(content)
    text = render(grown).text()
    assert "120 problems in the data set" in text and "120 × box-zero-size" in text
    assert "99.jpg" in text and "100.jpg" not in text
    assert "1 line of data_problems.jsonl could not be read" in text


def test_reading_a_folder_needs_no_torch_and_no_lock(grown):
    """`grown` is open for writing, as while a search runs."""
    code = (
        "import sys; from fastnas.report import write_report; print(write_report(sys.argv[1]));"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'onnx', 'onnxruntime')])"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(grown.folder)], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(grown.folder / "report.html"), "[]"]


def test_the_plots_are_drawn_in_a_browser(grown, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium")
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --dump-dom".split()
    flags += ["--virtual-time-budget=5000", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([browser, *flags, write_report(grown).as_uri()], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0
    assert done.stdout.count('class="main-svg"') >= 3
    assert "CONSOLE" not in done.stderr, done.stderr
