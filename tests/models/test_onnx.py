"""Block and network -> ONNX: what ONNX Runtime computes equals torch modules."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastnas.blueprint import blocks as b
from fastnas.blueprint import expand, operators, parse
from fastnas.errors import InputError
from fastnas.models.blocks import build_block
from fastnas.models.onnx import EMITTERS, block_inputs, block_model, network_inputs, network_model
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.weights import StateWeights


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def run_block(spec: b.Spec, arrays: list[np.ndarray], weights=None) -> list[np.ndarray]:
    shapes = tuple(array.shape for array in arrays)
    model = block_model(spec, shapes, weights=weights)
    outputs = run(model, {f"in{index}": array for index, array in enumerate(arrays)})
    assert tuple(output.shape for output in outputs) == spec.outputs(shapes)
    return outputs


def randomize(module: nn.Module) -> nn.Module:
    """Weights and statistics of a module that has been trained, more or less."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if value.dtype.is_floating_point:
            noise = torch.randn(value.shape, generator=generator)
            fan_in = max(value[0].numel(), 1)
            value.copy_(0.5 + noise.abs() if name.endswith("running_var") else noise * fan_in**-0.5)
    return module.eval()


def state(module: nn.Module, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: value.numpy() for name, value in module.state_dict().items()}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


LAYERS = [
    (b.Stem("7x7", 16, "bn"), [(1, 3, 37, 50)]),
    (b.Stem("3x3", 16, "gn"), [(1, 3, 37, 50)]),
    (b.Residual("basic", 8, 8, 1, "bn"), [(1, 8, 9, 12)]),
    (b.Residual("basic", 8, 16, 2, "gn"), [(1, 8, 9, 12)]),
    (b.Residual("bottleneck", 16, 8, 2, "bn"), [(1, 16, 9, 12)]),
    (b.Residual("bottleneck", 48, 12, 1, "gn"), [(1, 48, 9, 12)]),
    (b.Residual("resnext32x4d", 16, 16, 2, "bn"), [(1, 16, 8, 11)]),
    (b.Stem("3x3", 16, "gnws", taps=True), [(1, 3, 37, 50)]),
    (b.Stem("7x7", 16, "bn", taps=True), [(1, 3, 37, 50)]),
    (b.Residual("xbottleneck", 16, 16, 2, "gnws", base=8), [(1, 16, 8, 11)]),
    (b.Residual("basic", 16, 16, 1, "gnws", base=16), [(1, 16, 8, 11)]),
    (b.Connector(32, 16, "bn", 0), [(1, 16, 9, 12), (1, 32, 5, 6)]),
    (b.Connector(32, 16, "gnws", 8), [(1, 16, 9, 12), (1, 32, 9, 12)]),
    (b.FpnLevel(24, 8, top=True, feeds=False), [(1, 24, 5, 6)]),
    (b.FpnLevel(24, 8, top=True, feeds=True), [(1, 24, 5, 6)]),
    (b.FpnLevel(24, 8, top=False, feeds=True), [(1, 24, 10, 12), (1, 8, 5, 6)]),
    (b.FpnLevel(24, 8, top=False, feeds=False), [(1, 24, 13, 11), (1, 8, 7, 6)]),
    (b.FpnLevel(24, 8, top=False, feeds=True, norm="bn"), [(1, 24, 10, 11), (1, 8, 5, 6)]),
    (b.FpnLevel(24, 72, top=True, feeds=False, norm="gnws"), [(1, 24, 5, 6)]),
    (b.MaxPoolLevel(), [(1, 8, 7, 10)]),
    (b.ConvLevel(24, 8, relu=False, norm="none"), [(1, 24, 7, 10)]),
    (b.ConvLevel(8, 8, relu=True, norm="gnws"), [(1, 8, 7, 10)]),
    (b.RpnHead(16, 3), [(1, 16, 6, 9)]),
    (b.BoxHead(4, 7, 24, 4), [(11, 4, 7, 7)]),
    (b.RegionPredictor(8, 4), [(11, 8, 4, 4)]),
    (b.Residual("basic", 8, 16, 2, "gn"), [(5, 8, 7, 7)]),
    (b.Connector(32, 16, "gn", 0), [(3, 16, 7, 7), (3, 32, 4, 4)]),
    (b.BoxHead(4, 7, 24, 4, agnostic=True), [(11, 4, 7, 7)]),
    (b.Relu6Stem(8), [(1, 3, 37, 50)]),
    (b.InvertedResidual(8, 8, 6, 1), [(1, 8, 9, 12)]),
    (b.InvertedResidual(8, 16, 1, 2), [(1, 8, 9, 12)]),
    (b.SiluStem(8, "same", "tf"), [(1, 3, 37, 50)]),
    (b.SiluStem(8, "symmetric", "torch"), [(1, 3, 37, 50)]),
    (b.MobileBlock(8, 12, 1, 3, 1, "same", "tf"), [(1, 8, 9, 12)]),
    (b.MobileBlock(8, 8, 6, 5, 1, "same", "torch"), [(1, 8, 9, 12)]),
    (b.MobileBlock(8, 16, 6, 5, 2, "same", "tf"), [(1, 8, 9, 12)]),
    (b.MobileBlock(8, 16, 6, 3, 2, "same", "tf"), [(1, 8, 9, 12)]),
    (b.MobileBlock(8, 16, 4, 5, 2, "symmetric", "tf"), [(1, 8, 9, 12)]),
    (b.CoarserLevel(24, 8, "same", "yes"), [(1, 24, 7, 10)]),
    (b.CoarserLevel(8, 8, "symmetric", "no"), [(1, 8, 7, 10)]),
    (b.FusionNode((24, 8), 8, "fast", "same", "yes"), [(1, 24, 7, 10), (1, 8, 4, 5)]),
    (b.FusionNode((8, 8, 24), 8, "softmax", "same", "no"), [(1, 8, 7, 10), (1, 8, 7, 10), (1, 24, 14, 19)]),
    (b.FusionNode((8, 8, 8), 8, "sum", "symmetric", "yes"), [(1, 8, 7, 10), (1, 8, 7, 10), (1, 8, 14, 20)]),
    (b.FusionNode((8, 8), 8, "fast", "same", "yes"), [(1, 8, 1, 1), (1, 8, 2, 1)]),
    (b.HeadTower("classes", 8, 12, 2, 18, 3, "yes"), [(1, 8, 5, 6)]),
    (b.HeadTower("boxes", 8, 8, 0, 36, 2, "no"), [(1, 8, 5, 6)]),
    (b.ConvTower("classes", 16, 2, 18, 3, "none"), [(1, 16, 5, 6)]),
    (b.ConvTower("boxes", 16, 1, 36, 3, "bn"), [(1, 16, 5, 6)]),
    (b.ConvTower("boxes", 16, 1, 36, 3, "gnws"), [(1, 16, 5, 6)]),
]


@pytest.mark.parametrize(("spec", "shapes"), LAYERS, ids=lambda value: getattr(value, "op", None))
def test_layers_equal_torch(spec, shapes):
    module = randomize(build_block(spec))
    arrays = [noise(*shape, seed=index) for index, shape in enumerate(shapes)]
    with torch.no_grad():
        expected = module(*map(torch.from_numpy, arrays))
    outputs = run_block(spec, arrays, state(module, "block."))
    for output, reference in zip(outputs, expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(output, reference.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [b.HeadTower("classes", 8, 12, 2, 18, 3, "yes"), b.ConvTower("classes", 8, 2, 18, 3, "bn")])
def test_towers_use_the_norms_of_their_level(spec):
    module, value = randomize(build_block(spec)), noise(1, 8, 5, 6)
    outputs = []
    for use in range(3):
        graph = Graph()
        results = EMITTERS[type(spec)](graph, StateWeights(state(module, "block.")), "block", spec, [graph.input("x", value.shape)],
                                       (value.shape,), use)  # fmt: skip
        model = graph.model([(results[0], "y", (1, 18, 5, 6), np.dtype(np.float32))])
        (output,) = run(model, {"x": value})
        with torch.no_grad():
            np.testing.assert_allclose(output, module(torch.from_numpy(value), use).numpy(), rtol=1e-4, atol=1e-5)
        outputs.append(output)
    assert not np.allclose(outputs[0], outputs[1]) and not np.allclose(outputs[1], outputs[2])


@pytest.mark.parametrize(
    "text",
    [
        "96x128/bottleneck:1-2-2,base=8,stem=3x3/fpn:16/rpn:40,scale=4/rcnn:32,detections=20/classes:3",
        "97x131/efficientnet:0.25x0.4/bifpn:16,repeats=2/effdet:2,detections=20/classes:3",
        "96x128/efficientnet:b0,padding=symmetric,norm=torch/bifpn:24,repeats=1,levels=3-8,method=sum,bias=no/effdet:1/classes:2",
        "96x128/basic:1-2-2,base=8,stem=3x3/fpn:16/rpn:40,scale=4/cascade:3,hidden=32,detections=20/classes:3",
        "97x131/basic:1-2-1-1,base=8,stem=3x3/fpn:16,levels=3-6,extra=conv-p/retinanet:1,octaves=2,detections=20/classes:3",
        "97x131/basic:1-2-1-1,base=8,stem=3x3/fpn:16,levels=3-6,extra=conv-p/retinanet:2,norm=bn,background=yes,octaves=2,detections=20/classes:3",
        "96x128/basic:1-2-2,base=8,stem=3x3/fpn:16/garpn:40,scale=4/rcnn:32,detections=20,quality=high/classes:3",
        "97x131/efficientnet:0.25x0.4/bifpn:16,repeats=1,method=softmax/rpn:40,scale=4/rcnn:32,detections=20/classes:3",
        "97x131/xbottleneck:1-12-1,base=16,norm=gnws,parallel=1-2-1,c1=yes/fpn:16,levels=1-6,extra=conv-c,norm=gnws"
        "/rpn:40,scale=4/rcnn:32,detections=20/classes:3",
        "97x131/basic:1-2-2,base=8,norm=gn,parallel=0-0-1/none:3/rpn:40,scale=2,sizes=2/c4:7,detections=20/classes:3",
        "97x131/basic:1-2,base=16,stem=3x3,parallel=1-2,tied=no/fpn:16,norm=bn/rpn:40,scale=4/rcnn:32,detections=20/classes:3",
    ],
)
def test_network_with_weights_detects_what_the_module_detects(text):
    from fastnas.models import build

    blueprint = parse(text)
    module = randomize(build(blueprint))
    image = noise(1, 3, *blueprint.input)
    with torch.no_grad():
        expected = module(torch.from_numpy(image))[0]
    boxes, scores, labels = run(network_model(expand(blueprint), state(module)), {"image": image})
    count = len(expected["scores"])
    assert count > 5 and not scores[count:].any() and not labels[count:].any()
    np.testing.assert_allclose(scores[:count], expected["scores"], rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(labels[:count], expected["labels"])
    np.testing.assert_allclose(boxes[:count], expected["boxes"], rtol=1e-3, atol=0.05)


def test_weights_of_another_blueprint_are_refused():
    network = expand(parse("64x64/basic:1-2,base=8/fpn:8/rpn:10/rcnn:16/classes:3"))
    module = randomize(build_block(b.Residual("basic", 8, 8, 1, "bn")))
    with pytest.raises(InputError, match="another blueprint"):
        network_model(network, state(module, "backbone.stage1.block1."))
    with pytest.raises(InputError, match=r"shape \[8, 8, 3, 3\], the blueprint needs \[16, 16, 3, 3\]"):
        block_model(b.Residual("basic", 16, 16, 1, "bn"), ((1, 16, 8, 8),), weights=state(module, "block."))


codes = st.lists(st.text("12", min_size=1, max_size=2), min_size=1, max_size=4).map("-".join).filter(lambda code: code[0] == "1")


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(["basic", "bottleneck", "resnext32x4d", "xbottleneck"]),
    code=codes,
    stem=st.sampled_from(["7x7", "3x3"]),
    norm=st.sampled_from(["bn", "gn", "gnws"]),
    size=st.tuples(st.integers(40, 100), st.integers(40, 100)),
)
def test_shapes_of_random_networks(kind, code, stem, norm, size):
    text = f"{size[0]}x{size[1]}/{kind}:{code},base=16,stem={stem},norm={norm}/fpn:8/rpn:20/rcnn:16,detections=7/classes:3"
    check_timed_form(parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "65x97/efficientnet:0.25x0.4/bifpn:8,repeats=2/effdet:1,detections=7/classes:3",
        "65x97/basic:1-2-1,base=8/fpn:8,levels=3-6,extra=conv-c/retinanet:1,norm=gn,background=yes,detections=7/classes:3",
        "65x97/basic:1-2,base=8/fpn:8/garpn:20/rcnn:16,detections=7/classes:3",
        "65x97/basic:1-2,base=8/fpn:8/rpn:20/cascade:4,hidden=16,detections=7/classes:3",
    ],
)
def test_shapes_of_a_network(text):
    check_timed_form(parse(text))


def check_timed_form(blueprint):
    """Every block and the whole network run on what they are timed with."""
    network = expand(blueprint)
    for spec, shapes in network.prices():
        feeds = block_inputs(spec, shapes)
        assert tuple(array.shape for array in feeds.values()) == shapes
        outputs = run_block(spec, list(feeds.values()))
        assert all(np.isfinite(output).all() for output in outputs)
    outputs = run(network_model(network, synthetic_scores=True), network_inputs(network))
    assert [output.shape for output in outputs[:3]] == [(7, 4), (7,), (7,)]
    assert all(np.isfinite(output).all() for output in outputs)


def test_every_spec_has_an_emitter():
    named = [*vars(b).values(), *vars(operators).values()]
    specs = {spec for spec in named if isinstance(spec, type) and issubclass(spec, b.Spec)}
    assert set(EMITTERS) == specs - {b.Spec, operators.Operator}


@pytest.mark.parametrize(
    "text",
    [
        "96x128/basic:1-2,base=8/fpn:8/rpn:60/rcnn:16/classes:3",
        "96x128/basic:1-2,base=8/fpn:8/garpn:60/cascade:2,hidden=16,quality=high/classes:3",
        "96x128/efficientnet:0.25x0.4/bifpn:8,levels=3-6/effdet:1/classes:3",
        "96x128/efficientnet:0.25x0.4/bifpn:8,levels=3-6/retinanet:1/classes:3",
    ],
)
def test_synthetic_detections_do_not_depend_on_the_weights(text):
    network = expand(parse(text))
    feeds = network_inputs(network)
    plain = run(network_model(network, synthetic_scores=True), feeds)
    module = {name: 3 * value for name, value in feeds.items() if name == "image"}
    other = run(network_model(network, synthetic_scores=True), {**feeds, **module})
    for ours, theirs in zip(plain[:3], other[:3], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert 5 < (plain[1] > 0.05).sum() < 100, "suppression has work to do and does not run full"
    assert any(not np.array_equal(ours, theirs) for ours, theirs in zip(plain[3:], other[3:], strict=True))


def test_shared_weights_are_stored_once():
    network = expand(parse("64x64/basic:1-2,base=8/fpn:8/rpn:10/rcnn:16/classes:3"))
    names = [tensor.name for tensor in network_model(network).graph.initializer]
    assert names.count("rpn.head.conv.weight") == 1 and len(names) == len(set(names))


def test_large_random_weights_are_written_once_and_repeated():
    spec = b.BoxHead(256, 7, 1000, 91)  # 12.5 million weights in its first layer
    model = block_model(spec, ((1, 256, 7, 7),))
    assert model.ByteSize() < 8e6
    outputs = run(model, block_inputs(spec, ((1, 256, 7, 7),)))
    assert [output.shape for output in outputs] == [(1, 91), (1, 364)]
    assert all(0.01 < output.std() < 100 for output in outputs)


def test_no_torch_is_loaded():
    code = "import sys, fastnas.models.onnx, fastnas.models.anchors, fastnas.latency.oracle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
