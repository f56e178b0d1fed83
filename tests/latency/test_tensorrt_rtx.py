"""TensorRT's code path with a package that builds engines without a GPU: networks, ONNX parsing and building for real."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fastnas.blueprint import blocks as b
from fastnas.blueprint import expand, parse
from fastnas.errors import FastnasError
from fastnas.latency import tensorrt_builder
from fastnas.latency.tensorrt_builder import TimingCache, build_plan, make_logger
from fastnas.models.onnx import EMITTERS, in_precision
from fastnas.models.workload import BlockWorkload, NetworkWorkload

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install tensorrt_rtx)")

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
SETTINGS = {"level": "3", "tf32": "on"}
NETWORKS = [  # between them, every kind of block
    "64x96/basic:1-2,base=16/fpn:16/rpn:20,topk=50/rcnn:16,detections=10/classes:3",
    "64x96/bottleneck:1-2,base=16,norm=gn,stem=3x3/fpn:16/rpn:20,topk=50/rcnn:16,detections=10/classes:3",
    "64x96/resnext32x4d:1-2,base=16/fpn:16/rpn:20,topk=50/rcnn:16,detections=10/classes:3",
    "64x96/basic:1-2,base=16/fpn:16/rpn:20,topk=50/cascade:2,hidden=16,detections=10/classes:3",
    "64x96/basic:1-2-1,base=16/fpn:16,levels=3-5,extra=conv-p/retinanet:1,detections=10/classes:3",
    "64x96/basic:1-2,base=16/fpn:16/garpn:20,topk=50/rcnn:16,detections=10,quality=high/classes:3",
    "64x96/efficientnet:0.5x0.4/bifpn:16,repeats=1,levels=3-6/effdet:1,detections=10/classes:3",
    "64x96/mobilenetv2:0.25/fpn:16/rpn:20,topk=50/rcnn:16,detections=10/classes:3",
    "64x96/basic:1-2,base=16,parallel=0-1/fpn:16/rpn:20,topk=50/rcnn:16,detections=10/classes:3",
    "64x96/basic:1-2-2,base=16/none:3/rpn:20,topk=50/c4:4,detections=10/classes:3",
]
SUPPRESSES = *b.PROPOSERS, *b.SUPPRESSIONS  # parsed, but TensorRT-RTX has nothing that runs NMS
POOLS = b.RoiPool  # its plugin asks for a GPU as soon as it is created
DEFORMS = b.GuidedHead  # deformable convolution is a plugin of TensorRT that TensorRT-RTX does not have


def workloads() -> list[BlockWorkload]:
    blocks = [pair for text in NETWORKS for pair in expand(parse(text)).prices()]
    pairs = dict.fromkeys([*blocks, *(layer for spec, shapes in blocks for layer in spec.operators(shapes))])  # single layers too
    one_of_a_kind = {(type(spec), getattr(spec, "kind", ""), getattr(spec, "stride", 0)): (spec, shapes) for spec, shapes in pairs}
    return [BlockWorkload(spec, shapes) for spec, shapes in one_of_a_kind.values()]


WORKLOADS = workloads()


@pytest.fixture(scope="module")
def logger():
    return make_logger(trt)


@pytest.fixture
def network(logger):
    builder = trt.Builder(logger)
    yield builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def bytes_of(workload, precision: str) -> bytes:
    return in_precision(workload.onnx(static=True), precision).SerializeToString()


def layers(network) -> list:
    return [network.get_layer(index) for index in range(network.num_layers)]


def test_every_kind_of_block_is_here():
    assert {type(workload.spec) for workload in WORKLOADS} == set(EMITTERS), "add a blueprint that has it to NETWORKS"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("workload", [w for w in WORKLOADS if not isinstance(w.spec, (*SUPPRESSES, POOLS, DEFORMS))], ids=str)
def test_blocks_are_built(logger, workload, precision):
    assert len(build_plan(trt, logger, bytes_of(workload, precision), SETTINGS)) > 1000


@pytest.mark.parametrize("workload", [w for w in WORKLOADS if isinstance(w.spec, DEFORMS)], ids=lambda w: w.spec.op)
def test_deformable_convolution_is_refused_by_rtx(logger, network, workload):
    with pytest.raises(FastnasError, match="DeformConv.*Plugin not found"):
        tensorrt_builder.parse(trt, logger, network, bytes_of(workload, "fp32"))


@pytest.mark.parametrize("workload", [w for w in WORKLOADS if isinstance(w.spec, SUPPRESSES)], ids=lambda w: w.spec.op)
def test_suppression_is_parsed_and_refused_by_rtx(logger, network, workload):
    tensorrt_builder.parse(trt, logger, network, bytes_of(workload, "fp16"))
    assert sum(layer.type == trt.LayerType.NMS for layer in layers(network)) == 1
    assert all(-1 not in tuple(network.get_output(index).shape) for index in range(network.num_outputs))
    with pytest.raises(FastnasError, match="NonMaxSuppression_.* has no runners"):
        build_plan(trt, logger, bytes_of(workload, "fp16"), SETTINGS)


def test_all_of_pooling_but_its_plugin_is_built(logger):
    [workload] = [w for w in WORKLOADS if isinstance(w.spec, POOLS)]
    model = in_precision(workload.onnx(static=True), "fp16")
    [pool] = [node for node in model.graph.node if node.op_type == "RoiAlign"]
    stacked, boxes, _ = pool.input
    del model.graph.output[:]
    for name in (stacked, boxes):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    kept = [node for node in model.graph.node if node is not pool and pool.output[0] not in node.input and node.name != pool.name]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    assert build_plan(trt, logger, model.SerializeToString(), SETTINGS)


def test_types_are_those_of_the_graph(logger, network):
    workload = BlockWorkload(b.Residual("basic", 16, 16, 1, "bn"), ((1, 16, 8, 8),))
    tensorrt_builder.parse(trt, logger, network, bytes_of(workload, "fp16"))
    convolutions = [layer for layer in layers(network) if layer.type == trt.LayerType.CONVOLUTION]
    assert len(convolutions) == 2 and all(layer.get_output(0).dtype == trt.float16 for layer in convolutions)
    assert network.get_input(0).dtype == network.get_output(0).dtype == trt.float16
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_int8_quantizes_weights_inputs_and_the_shortcut(logger, network):
    workload = BlockWorkload(b.Residual("basic", 16, 16, 1, "bn"), ((1, 16, 8, 8),))
    tensorrt_builder.parse(trt, logger, network, bytes_of(workload, "int8"))
    kinds = [layer.type for layer in layers(network)]
    assert kinds.count(trt.LayerType.QUANTIZE) == 2, "the block's input (also its shortcut) and what the second convolution reads"
    assert kinds.count(trt.LayerType.DEQUANTIZE) == 4


def test_a_node_that_is_not_known_is_named(logger):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([helper.make_node("Frobnicate", ["x"], ["y"], name="odd")], "g", [value], [result])
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(FastnasError, match=r"ONNX node .*\(Frobnicate\)"):
        build_plan(trt, logger, model.SerializeToString(), SETTINGS)
    with pytest.raises(FastnasError):
        build_plan(trt, logger, b"no model", SETTINGS)


def test_settings_reach_the_builder(logger):
    workload = BlockWorkload(b.MaxPoolLevel(), ((1, 8, 6, 6),))
    assert build_plan(trt, logger, bytes_of(workload, "fp32"), {"level": "0", "tf32": "off"})


def test_timings_are_kept_and_damaged_ones_replaced(logger, tmp_path):
    workload = BlockWorkload(b.MaxPoolLevel(), ((1, 8, 6, 6),))
    timings = TimingCache("tensorrt 11 gpu", tmp_path)
    assert timings.path != TimingCache("tensorrt 10 gpu", tmp_path).path and timings.read() == b""
    build_plan(trt, logger, bytes_of(workload, "fp32"), SETTINGS, timings)
    kept = timings.read()
    assert kept
    for damage in (b"no cache", kept[: len(kept) // 2]):
        timings.write(damage)
        assert build_plan(trt, logger, bytes_of(workload, "fp32"), SETTINGS, timings)
    assert [path.name for path in tmp_path.iterdir()] == [timings.path.name], "nothing temporary stays"


def test_a_whole_network_is_parsed_up_to_its_pooling(logger, network):
    """Proposal selection comes before it; all weights and types of the dense part are accepted."""
    workload = NetworkWorkload(expand(parse(NETWORKS[0])))
    with pytest.raises(FastnasError, match="RoiAlign"):
        tensorrt_builder.parse(trt, logger, network, bytes_of(workload, "int8"))
    assert sum(layer.type == trt.LayerType.CONVOLUTION for layer in layers(network)) > 10
    assert np.prod(network.get_input(0).shape) > 0
