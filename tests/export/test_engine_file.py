"""TensorRT engine files: what is written, and the models that TensorRT-RTX builds on a machine without a GPU."""

import json

import onnx
import pytest

from fastnas.errors import FastnasError, InputError
from fastnas.export.engine_file import open_builder, write_engine
from fastnas.export.onnx_file import Form, export_onnx
from fastnas.latency.tensorrt_builder import build_plan, make_logger
from fastnas.models.onnx import in_precision
from tests.export.conftest import CLASSES, TEXTS


class Builder:
    """An engine as the oracle's, which keeps the model instead of building it."""

    name, precision = "tensorrt", "fp16"

    def build(self, model: onnx.ModelProto) -> bytes:
        return in_precision(model, self.precision).SerializeToString()

    def environment(self) -> dict:
        return {"engine": self.name, "version": "11.0"}


@pytest.fixture
def exported(weights):
    return export_onnx(weights("one-stage"), Form(raw=True, target="tensorrt"))


def test_the_engine_gets_a_description(tmp_path, exported):
    beside = write_engine(tmp_path / "d.engine", exported, Builder())
    described = json.loads(beside.read_text())
    assert described["blueprint"] == TEXTS["one-stage"] and json.loads(described["classes"]) == CLASSES
    assert described["precision"] == "fp16" and described["environment"]["version"] == "11.0"
    assert described["outputs"]["head.classes3"] == [1, 27, 13, 17] and described["check"]["matched"] > 0
    assert onnx.ModelProto.FromString((tmp_path / "d.engine").read_bytes()).graph.input[0].type.tensor_type.elem_type == 10


def test_a_model_that_cannot_be_built_leaves_no_file(tmp_path, exported):
    class Failing(Builder):
        def build(self, model):
            raise FastnasError("no kernel")

    with pytest.raises(FastnasError, match="tensorrt cannot build .*no kernel"):
        write_engine(tmp_path / "d.engine", exported, Failing())
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no folder"):
        write_engine(tmp_path / "none" / "d.engine", exported, Builder())


@pytest.mark.parametrize(
    ("engine", "error", "says"),
    [("onnxruntime", InputError, "builds no engine files"), ("tensorrt:int8", InputError, "scales")],
)
def test_engines_that_cannot_be_exported(engine, error, says):
    with pytest.raises(error, match=says):
        open_builder(engine)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_the_maps_of_a_trained_detector(exported, precision):
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install tensorrt_rtx)")
    model = in_precision(exported.model, precision).SerializeToString()
    assert len(build_plan(trt, make_logger(trt), model, {"level": "3", "tf32": "on"})) > 1000
