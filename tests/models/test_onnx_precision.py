"""The forms in which engines for GPUs take the graphs: static shapes, float16, int8. ONNX Runtime computes all of them."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastnas.blueprint import blocks as b
from fastnas.blueprint import expand, parse
from fastnas.models.onnx import block_model, in_precision
from fastnas.models.onnx.boxes import CANDIDATES, LARGEST_TOPK
from fastnas.models.onnx.precision import ACTIVATION_SCALE
from fastnas.models.workload import BlockWorkload, NetworkWorkload
from tests.models.test_onnx import LAYERS, noise, run

NETWORK = expand(parse("96x128/basic:11-2,base=16,norm=gn/fpn:16/rpn:60,topk=100/rcnn:32,detections=10/classes:3"))
WORKLOADS = [BlockWorkload(*pair) for pair in NETWORK.prices()] + [NetworkWorkload(NETWORK)]


def execute(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """As `run`, with the arrays in the types that the model takes."""
    types = {info.name: info.type.tensor_type.elem_type for info in model.graph.input}
    feeds = {name: array.astype(helper.tensor_dtype_to_np_dtype(types[name])) for name, array in arrays.items()}
    return run(model, feeds)


def close(ours: list[np.ndarray], truth: list[np.ndarray], share: float) -> None:
    """Off by at most this share of the largest value."""
    for one, other in zip(ours, truth, strict=True):
        assert np.abs(one.astype(np.float64) - other).max() <= share * max(np.abs(other).max(), 1e-3)


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_static_graphs_compute_the_same(workload):
    model = workload.onnx(static=True)
    assert not any(node.op_type == "NonZero" for node in model.graph.node)
    close(run(model, workload.inputs()), run(workload.onnx(), workload.inputs()), 1e-6)


@pytest.mark.parametrize("size", [(96, 128), (100, 61)])
def test_stacked_pooling_reads_each_level_alone(size):
    """Boxes of all sizes, many of them at the borders of the image and across cells that lie beside another level."""
    random = np.random.default_rng(1)
    height, width = size
    sides = np.exp(random.uniform(np.log(33), np.log(min(size)), (400, 2)))  # at least a cell of the coarsest level
    corners = random.uniform(-0.3, 1.3, (400, 2)).clip(0, 1) * ([width, height] - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    shapes = [(1, 8, -(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
    feeds = {f"in{index}": array for index, array in enumerate([*(noise(*shape, seed=shape[2]) for shape in shapes), boxes])}
    spec = b.RoiPool((4, 8, 16, 32))
    models = [block_model(spec, (*shapes, boxes.shape), static=static) for static in (True, False)]
    ours, truth = (run(model, feeds)[0] for model in models)
    np.testing.assert_allclose(ours, truth, atol=2e-5)


def test_static_graphs_sort_no_more_than_tensorrt_does():
    maps = ((1, 3, 40, 40), (1, 12, 40, 40))
    spec = b.Proposals((160, 160), (4,), 8, (0.5, 1.0, 2.0), topk=4500, proposals=10)
    for static, count in ((True, LARGEST_TOPK), (False, 4500)):
        model = block_model(spec, maps, static=static)
        sorts = [node for node in model.graph.node if node.op_type == "TopK"]
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        assert max(int(constants[node.input[1]][0]) for node in sorts) == count


def test_static_detections_beyond_their_candidates():
    """More pairs pass than are decoded: the best of them still come out, and in the same order."""
    regions, classes = 900, 4
    random = np.random.default_rng(2)
    logits = random.normal(0, 0.3, (regions, classes + 1)).astype(np.float32)  # nearly all scores are over 0.05
    assert regions * classes > CANDIDATES
    boxes = np.tile(np.array([[0, 0, 4, 4]], np.float32), (regions, 1)) + 5 * np.arange(regions, dtype=np.float32)[:, None]
    deltas = np.zeros((regions, 4 * (classes + 1)), np.float32)
    feeds = {"in0": boxes, "in1": logits, "in2": deltas}
    spec, shapes = b.Detections((8000, 8000), 50), tuple(array.shape for array in feeds.values())
    ours, truth = (run(block_model(spec, shapes, static=static), feeds) for static in (True, False))
    for one, other in zip(ours, truth, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_fp16_is_close(workload, static):
    model = in_precision(workload.onnx(static=static), "fp16")
    close(execute(model, workload.inputs()), run(workload.onnx(), workload.inputs()), 4e-3)


@pytest.mark.parametrize(("spec", "shapes"), LAYERS, ids=lambda value: getattr(value, "op", None))
def test_all_arithmetic_of_layers_is_half(spec, shapes):
    model = in_precision(block_model(spec, tuple(shapes)), "fp16")
    types = _types(model)
    assert {types[info.name] for info in (*model.graph.input, *model.graph.output)} == {TensorProto.FLOAT16}
    assert not any(node.op_type == "Cast" for node in model.graph.node)
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert all(numpy_helper.to_array(weight).size <= 4 for weight in weights), "nothing but the scales of a Resize"


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.output, *graph.value_info)}


def test_boxes_and_scores_stay_float32():
    model = in_precision(NetworkWorkload(NETWORK).onnx(static=True), "int8")
    types = _types(model)
    for node in model.graph.node:
        if node.op_type in ("TopK", "NonMaxSuppression", "RoiAlign", "Exp", "Softmax", "Min"):
            assert all(types.get(name) != TensorProto.FLOAT16 for name in node.input), node.name


@pytest.mark.parametrize(("spec", "shapes"), LAYERS, ids=lambda value: getattr(value, "op", None))
def test_int8_with_scales_of_the_data_is_close(spec, shapes):
    arrays = {f"in{index}": noise(*shape) for index, shape in enumerate(shapes)}
    source = block_model(spec, tuple(shapes))
    truth = run(source, arrays)
    model = in_precision(block_model(spec, tuple(shapes)), "int8", _scales(source, arrays))
    close(execute(model, arrays), truth, 0.06)
    quantized = {node.op_type for node in model.graph.node} & {"Conv", "Gemm"}
    assert bool(quantized) == any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    names = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            activation, weight = (made[name] for name in node.input[:2])
            assert activation.op_type == weight.op_type == "DequantizeLinear" and names[weight.input[0]] == TensorProto.INT8
            assert made[activation.input[0]].op_type == "QuantizeLinear"


def _scales(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest magnitude of every value, over 127."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    types = _types(model)
    known = {info.name for info in copy.graph.output}
    for node in copy.graph.node:
        for name in node.output:
            if types.get(name) == TensorProto.FLOAT and name not in known:
                copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(copy.SerializeToString())
    values = dict(zip((info.name for info in session.get_outputs()), session.run(None, arrays), strict=True)) | arrays
    return {name: float(np.abs(value).max()) / 127 for name, value in values.items()}


def test_scales_default_to_four_deviations():
    model = in_precision(block_model(b.RpnHead(8, 3), ((1, 8, 6, 6),)), "int8")
    [scale] = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "in0.scale"]
    assert scale == np.float16(ACTIVATION_SCALE)


def test_repeated_rows_are_written_out():
    """Engines that take weights as constants only find them so."""
    source = block_model(b.BoxHead(64, 7, 200, 4), ((3, 64, 7, 7),))
    model = in_precision(block_model(b.BoxHead(64, 7, 200, 4), ((3, 64, 7, 7),)), "fp32")
    assert any(node.op_type == "Gather" for node in source.graph.node)
    assert not any(node.op_type == "Gather" for node in model.graph.node)
    feeds = {"in0": noise(3, 64, 7, 7)}
    close(run(model, feeds), run(source, feeds), 1e-6)
