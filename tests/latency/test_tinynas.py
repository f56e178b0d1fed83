"""Published tables of single convolutions become operator entries, or are refused in one line."""

import time

import pytest

from fastnas.blueprint import PRESETS
from fastnas.blueprint.operators import Conv
from fastnas.errors import FastnasError, InputError
from fastnas.latency import Oracle, oracle
from fastnas.latency.exchange import contents, export, merge, read_export
from fastnas.latency.table import LatencyTable
from fastnas.latency.timing import Timing
from fastnas.latency.tinynas import EXAMPLE, import_tinynas, read_tinynas
from tests.latency import published


def test_every_measured_line_is_an_entry(published_file):
    measured = read_tinynas(published_file, "tensorrt:fp16", "v100")
    assert len(measured.blocks) == sum(not line.endswith("-1") for line in published.lines()) > 1000
    dense = measured.blocks[Conv(32, 64, 3, 2).key(((1, 32, 16, 16), (1, 64, 8, 8)))]
    assert dense.median_ms == pytest.approx(published.law(32, 16, 16, 64, 3, 2, 1))
    depthwise = measured.blocks[Conv(64, 64, 3, 1, 64).key(((1, 64, 8, 8),))]
    assert depthwise.median_ms == pytest.approx(published.law(64, 8, 8, 64, 3, 1, 0, depthwise=True))
    description = measured.description
    assert (description["engine"], description["precision"], description["device"]) == ("tensorrt", "fp16", "v100")
    assert description["imported"]["format"] == "tinynas" and description["imported"]["file"] == "conv.txt"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is no TinyNAS table: no line holds a time"),
        (b"{Regular,1,64,56,56,64,3,1,0} -1\n", "no line holds a time"),
        (b"\xff\xd8\xff\xe0 a photograph", "line 1 is"),
        (f"{EXAMPLE}\n{{Regular,1,64,56".encode(), "line 2 is '{Regular,1,64,56', expected one such as"),
        (b"{Regular,1,64,56,56,64,3,1,0} nan", "line 1"),
        (b"{Regular,1,64,56,56,64,3,1,0} 0", "no layer that can have been measured"),
        (b"{Regular,1,64,56,56,64,3,1,0} " + b"9" * 400, "no layer that can have been measured"),
        (b"{Depthwise,1,64,56,56,32,3,1,0} 0.1", "no layer that can have been measured"),
        (b"{Regular,1,64,0,56,32,3,1,0} 0.1", "no layer that can have been measured"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_tinynas(path, "tensorrt:fp16", "v100")
    assert message in str(error.value) and "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    "engine, message",
    [("tensorrt", "say the precision"), ("tensorrt:fp9", "unknown precision 'fp9'"), ("tensort:fp16", "did you mean tensorrt")],
)
def test_engines_that_say_too_little(published_file, engine, message):
    with pytest.raises(InputError, match=message):
        read_tinynas(published_file, engine, "v100")


def test_the_same_file_again_changes_nothing_and_another_is_refused(published_file, tmp_path):
    table, measured = LatencyTable(tmp_path / "a.db"), read_tinynas(published_file, "tensorrt:fp16", "v100")
    assert import_tinynas(table, measured) == len(measured.blocks)
    assert import_tinynas(table, measured) == 0
    other = tmp_path / "other.txt"
    other.write_text(f"{EXAMPLE}\n")
    with pytest.raises(InputError, match="already holds tensorrt:fp16 on v100 from elsewhere.*--device"):
        import_tinynas(table, read_tinynas(other, "tensorrt:fp16", "v100"))
    assert import_tinynas(table, read_tinynas(other, "tensorrt:fp32", "v100")) == 1
    assert [one["entries"] for one in table.environments()] == [len(measured.blocks), 1]
    table.close()


def test_what_was_imported_travels_like_any_other_entries(published_table, tmp_path):
    table, copy = LatencyTable(published_table, writable=False), LatencyTable(tmp_path / "copy.db")
    entries = export(table, tmp_path / "all.jsonl")
    assert merge(copy, read_export(tmp_path / "all.jsonl")) == entries
    assert contents(copy) == contents(table)
    table.close()
    copy.close()


def _absent(text):
    raise FastnasError("engine tensorrt cannot run here: no device")


def test_a_table_of_200_000_entries_opens_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "open_engine", _absent)
    path = tmp_path / "large.db"
    table = LatencyTable(path)
    row = table.add_environment({"engine": "tensorrt", "version": "1", "device": "v100", "precision": "fp16", "imported": {}}, {})
    key = Conv(7, 8, 3).key(((1, 7, 9, 9),))
    table.put_all(row, {key.replace("9,9", f"{i},9"): Timing(1.0, 1.0, 0.0, 1) for i in range(200_000)})
    table.close()
    start = time.process_time()
    with Oracle.open(path, "tensorrt:fp16") as opened:
        took = time.process_time() - start
        assert opened.entries() == 200_000 and not opened.runs_here
    assert took < 1, "processor seconds: other work on the machine does not count"


def test_the_published_file_prices_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "open_engine", _absent)
    path = tmp_path / "v100.db"
    table = LatencyTable(path)
    import_tinynas(table, read_tinynas(published.real("fp16"), "tensorrt:fp16", "v100"))
    table.close()
    with Oracle.open(path, "tensorrt:fp16") as opened:
        price, small = opened(PRESETS["fasterrcnn-r50-fpn"]), opened(PRESETS["efficientdet-d0"])
    # 134 giga multiply-adds, of which a V100 does 62.5 tera a second at most.
    assert 134 / 62.5 < price.predicted < 30 and price.low < price.predicted < price.high
    assert price.interpolated > 0.5 and price.modelled < 0.5 and small.predicted < price.predicted
