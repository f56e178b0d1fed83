"""Which of a table's environments is priced, and what an engine that is not here cannot do."""

import numpy as np
import pytest

from fastnas.blueprint import PRESETS, expand, parse
from fastnas.errors import FastnasError, InputError
from fastnas.latency import Lacking, Oracle, oracle
from fastnas.latency.batch import BatchPricer
from fastnas.latency.engines import environment, split_engine
from fastnas.latency.recorded import Recorded
from fastnas.latency.table import LatencyTable
from fastnas.latency.timing import Timing
from fastnas.models.workload import BlockWorkload
from fastnas.spaces import SerialRules, SerialSpace

SMALL = parse("64x64/basic:1-2,base=16/fpn:16/rpn:20,topk=50/rcnn:16,detections=10/classes:3")


class Here:
    """An engine of this machine."""

    name, version, precision = "onnxruntime", "1", "fp32"

    def environment(self):
        return environment(self, {"device": "this", "device_id": ""}, 1, {})

    def clock(self):
        raise AssertionError("nothing may be timed")

    def prepare(self, workload):
        raise AssertionError("nothing may be run")


@pytest.fixture(autouse=True)
def only_onnxruntime_runs_here(monkeypatch):
    def open_engine(text):
        if split_engine(text)[0] == "onnxruntime":
            return Here()
        raise FastnasError(f"engine {text} cannot run here: no device")

    monkeypatch.setattr(oracle, "open_engine", open_engine)


@pytest.fixture
def table(tmp_path):
    """Environments of one entry each."""
    path = tmp_path / "latency.db"
    opened, baselines = LatencyTable(path), {"dense": 1.0, "gather": 1.0}
    for device, precision, version in [("v100", "fp16", "8"), ("v100", "fp32", "8"), ("a100", "fp16", "8"), ("a100", "fp16", "10")]:
        description = {"engine": "tensorrt", "version": version, "device": device, "precision": precision, "settings": {}}
        opened.put(opened.add_environment(description, baselines), "x", Timing(1.0, 1.0, 0.0, 5))
    opened.put(opened.add_environment(Here().environment(), baselines), "x", Timing(1.0, 1.0, 0.0, 5))
    opened.close()
    return path


@pytest.mark.parametrize(
    "engine, device, found",
    [
        ("onnxruntime", None, ("onnxruntime", "this", "fp32")),
        ("onnxruntime", "THIS", ("onnxruntime", "this", "fp32")),
        ("tensorrt:fp32", None, ("tensorrt", "v100", "fp32")),
        ("tensorrt:fp16", "v100", ("tensorrt", "v100", "fp16")),
        ("tensorrt:fp16", "V100", ("tensorrt", "v100", "fp16")),
    ],
)
def test_the_environment_that_is_meant(table, engine, device, found):
    with Oracle.open(table, engine, measure=False, device=device) as opened:
        assert tuple(opened.environment[key] for key in ("engine", "device", "precision")) == found
        assert opened.runs_here == (found[0] == "onnxruntime") and opened.entries() == 1


@pytest.mark.parametrize(
    "engine, device, error, message",
    [
        ("tensorrt:fp16", None, InputError, r"holds 3 environments of tensorrt:fp16 \(.*a100.*v100.*--device"),
        ("tensorrt", "v100", InputError, "holds 2 environments of tensorrt .*fp16.*fp32.*PRECISION"),
        ("tensorrt:fp16", "a100", InputError, "tensorrt:fp16 10 on a100; tensorrt:fp16 8 on a100"),
        ("tensorrt:fp16", "h100", InputError, r"holds no environment of tensorrt:fp16 on h100 \(it holds: .*v100"),
        ("onnxruntime", "v100", InputError, "holds no environment of onnxruntime on v100"),
        ("tensorrt:int8", None, FastnasError, "tensorrt:int8 cannot run here: no device"),
        ("openvino", None, InputError, "unknown engine"),
    ],
)
def test_what_is_not_clear_is_refused(table, engine, device, error, message):
    with pytest.raises(error, match=message):
        Oracle.open(table, engine, device=device)


def test_no_table_is_made_for_an_engine_that_is_not_here(tmp_path):
    with pytest.raises(FastnasError, match="cannot run here"):
        Oracle.open(tmp_path / "new.db", "tensorrt:fp16")
    with pytest.raises(InputError, match="cannot read the latency table"):
        Oracle.open(tmp_path / "new.db", "onnxruntime", device="v100")
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_here_prices_without_measuring(published_table):
    before = published_table.read_bytes()
    with Oracle.open(published_table, "tensorrt:fp16") as opened:
        price = opened(SMALL)
        assert price.engine == "tensorrt" and 0 < price.low < price.predicted < price.high
        assert price.measured + price.interpolated + price.modelled == pytest.approx(1) and 0 < price.modelled < 1
        assert sum(block.ms for block in opened.blocks(SMALL)) == pytest.approx(price.predicted)
        assert opened.fill([SMALL]) == 0 and opened.missing([SMALL]) and "v100 is not here" in opened.calibration_note()
        with pytest.raises(FastnasError, match="tensorrt on v100 is not here"):
            opened.measure_whole(SMALL)
        assert opened(PRESETS["efficientdet-d0"]).predicted > 0
    assert published_table.read_bytes() == before


def test_batches_of_estimated_blocks_are_the_oracles_numbers(published_table):
    space, random = SerialSpace(SMALL, SerialRules(max_blocks=6)), np.random.default_rng(0)
    blueprints = [space.sample(random) for _ in range(20)]
    with Oracle.open(published_table, "tensorrt:fp16") as opened:
        pricer = BatchPricer(opened, space)
        assert pricer.unknown == 0
        found = pricer(np.stack([space.encode(blueprint) for blueprint in blueprints]))
        assert found == pytest.approx([opened(blueprint).predicted for blueprint in blueprints], rel=1e-9)


def test_a_table_of_few_layers_says_what_it_lacks(tmp_path):
    path = tmp_path / "few.db"
    opened = LatencyTable(path)
    description = {"engine": "tensorrt", "version": "?", "device": "v100", "precision": "fp16", "settings": {}, "imported": {}}
    opened.add_environment(description, {})
    opened.close()
    with Oracle.open(path, "tensorrt:fp16") as opened, pytest.raises(Lacking, match="tensorrt on v100: it holds fewer than 24"):
        opened(SMALL)


def test_a_recorded_engine_runs_nothing():
    engine = Recorded({"engine": "tensorrt", "version": "8", "device": "v100", "precision": "fp16"})
    assert (engine.name, engine.version, engine.precision) == ("tensorrt", "8", "fp16")
    spec, shapes = next(iter(expand(SMALL).prices()))
    for call in (engine.clock, lambda: engine.prepare(BlockWorkload(spec, shapes))):
        with pytest.raises(FastnasError, match="tensorrt on v100 is not here"):
            call()
