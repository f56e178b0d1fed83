"""Exported tables come back as they were, damaged ones are refused, and merging only joins what compares."""

import json

import pytest

from fastnas.blueprint import expand, parse
from fastnas.errors import InputError
from fastnas.latency.exchange import contents, export, merge, read_export
from fastnas.latency.table import LatencyTable
from fastnas.latency.timing import Timing, reference_of

HERE = {"engine": "test", "device": "a", "threads": 1}
BASELINES = {"dense": 0.5, "gather": 0.25}
NETWORK = parse("64x64/basic:1-2,base=8/fpn:8/rpn:20,topk=50/rcnn:16,detections=10/classes:3")
BLOCKS = [spec.key(shapes) for spec, shapes in expand(NETWORK).prices()]


def make(path, blocks=BLOCKS, description=HERE, baselines=BASELINES, ms=1.0, spread=0.02) -> LatencyTable:
    table = LatencyTable(path)
    row = table.add_environment(description, baselines)
    for index, block in enumerate(blocks):
        table.put(row, block, Timing(ms * (index + 1), 0.9 * ms, spread, 9))
    table.put_network(row, NETWORK.text, Timing(9.0, 8.5, 0.01, 5), {"dense": 3.0, "gather": 1.0})
    return table


def test_export_comes_back(tmp_path):
    table = make(tmp_path / "a.db")
    assert export(table, tmp_path / "a.jsonl") == len(BLOCKS)
    assert read_export(tmp_path / "a.jsonl") == contents(table)
    empty = LatencyTable(tmp_path / "b.db")
    assert merge(empty, read_export(tmp_path / "a.jsonl")) == len(BLOCKS)
    assert contents(empty) == contents(table)
    assert merge(empty, contents(table)) == 0, "nothing is new the second time"


def test_every_damage_is_noticed(tmp_path):
    export(make(tmp_path / "a.db"), tmp_path / "a.jsonl")
    data = (tmp_path / "a.jsonl").read_bytes()
    lines = data.splitlines(keepends=True)
    changed = data.replace(b'"median_ms":1.0', b'"median_ms":2.0', 1)
    assert changed != data
    for name, damaged in {
        "changed": changed,
        "cut": data[: len(data) // 2],
        "without its end": b"".join(lines[:-1]),
        "a line less": b"".join(lines[:3] + lines[4:]),
        "empty": b"",
        "no text": bytes(range(256)),
        "other JSON": b'{"a": 1}\n{"b": 2}\n',
    }.items():
        path = tmp_path / "damaged.jsonl"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged.jsonl"):
            pytest.fail(f"{name}: {read_export(path)}")


def test_impossible_values_are_refused_even_with_a_fitting_checksum(tmp_path, monkeypatch):
    table = make(tmp_path / "a.db", BLOCKS[:1])
    for key, value in [("median_ms", -1.0), ("median_ms", "fast"), ("spread", float("nan")), ("count", 0), ("median_ms", None)]:
        original = Timing.to_dict
        monkeypatch.setattr(Timing, "to_dict", lambda self, k=key, v=value, o=original: {**o(self), k: v})
        export(table, tmp_path / "bad.jsonl")
        monkeypatch.undo()
        with pytest.raises(InputError, match="cannot have written"):
            read_export(tmp_path / "bad.jsonl")


def test_newer_format(tmp_path):
    (tmp_path / "new.jsonl").write_text('{"fastnas_latency_table":9}\n{"lines":1,"sha256":""}\n')
    with pytest.raises(InputError, match="format 9.*update fastnas"):
        read_export(tmp_path / "new.jsonl")


def test_another_environment_is_refused_by_the_names_of_what_differs(tmp_path):
    target = make(tmp_path / "a.db")
    other = make(tmp_path / "b.db", description={**HERE, "device": "b", "threads": 2})
    before = contents(target)
    with pytest.raises(InputError, match=r"another environment \(device, threads differ\).*--add-environments"):
        merge(target, contents(other))
    assert contents(target) == before
    assert merge(target, contents(other), add_environments=True) == len(BLOCKS)
    assert [measured.description["device"] for measured in contents(target)] == ["a", "b"]


def test_merging_scales_to_the_lower_baselines(tmp_path):
    # The source's machine was busy while its references ran: twice the baseline, so twice the times.
    target = make(tmp_path / "a.db", BLOCKS[:1])
    source = make(tmp_path / "b.db", BLOCKS[1:], baselines={name: 2 * value for name, value in BASELINES.items()}, ms=2.0)
    merge(target, contents(source))
    [merged] = contents(target)
    assert merged.baselines == BASELINES
    for index, block in enumerate(BLOCKS[1:]):
        assert merged.blocks[block].median_ms == pytest.approx(index + 1)
    # and the other way round: the target is corrected
    target = make(tmp_path / "c.db", BLOCKS[:1], baselines={"dense": 1.0, "gather": 0.25})
    merge(target, contents(make(tmp_path / "d.db", BLOCKS[1:])))
    [merged] = contents(target)
    assert merged.baselines == BASELINES
    factor = 0.5 if reference_of(BLOCKS[0]) == "dense" else 1.0
    assert merged.blocks[BLOCKS[0]].median_ms == pytest.approx(factor)
    assert merged.networks[NETWORK.text][0].median_ms == pytest.approx(9.0 * (0.75 * 0.5 + 0.25))


def test_of_two_entries_the_steadier_one_stays(tmp_path):
    target = make(tmp_path / "a.db", ms=1.0, spread=0.02)
    assert merge(target, contents(make(tmp_path / "b.db", ms=3.0, spread=0.05))) == 0
    assert merge(target, contents(make(tmp_path / "c.db", BLOCKS[:2], ms=5.0, spread=0.01))) == 2
    [merged] = contents(target)
    assert [merged.blocks[block].median_ms for block in BLOCKS[:3]] == pytest.approx([5.0, 10.0, 3.0])


def test_merging_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    target = make(tmp_path / "a.db", BLOCKS[:1])
    before, original = contents(target), LatencyTable.put_all

    def fails_late(self, *arguments):
        original(self, *arguments)
        raise KeyboardInterrupt

    source = contents(make(tmp_path / "b.db"))
    monkeypatch.setattr(LatencyTable, "put_all", fails_late)
    with pytest.raises(KeyboardInterrupt):
        merge(target, source)
    assert contents(target) == before


def test_exported_lines_are_plain_json(tmp_path):
    export(make(tmp_path / "a.db"), tmp_path / "a.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines[0] == {"fastnas_latency_table": 1} and lines[1]["environment"] == HERE
    assert {"block", "median_ms", "min_ms", "spread", "count"} == set(lines[2]) and lines[-1]["lines"] == len(lines) - 1
