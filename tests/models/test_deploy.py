"""Detectors as they are deployed: pixels in, any number of images where the blocks take them."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fastnas.blueprint import PRESETS, expand, parse
from fastnas.blueprint.wiring import DETECTIONS
from fastnas.errors import InputError
from fastnas.models import build
from fastnas.models.onnx import deployed_model, map_outputs, raw_outputs
from fastnas.models.pixels import MEAN, STD, scale_and_shift

TWO = "64x96/basic:1-2,base=8,norm=gn/fpn:16/rpn:20,topk=50/rcnn:16,detections=10/classes:3"
C4 = "75x101/basic:11-21-21-21,base=16/none:4/rpn:20,scale=2,sizes=3/c4:14,detections=10/classes:3"
GUIDED = "64x96/basic:1-2,base=8/fpn:8/garpn:20/rcnn:16,detections=10/classes:3"
CASCADE = "64x96/basic:1-2,base=8/fpn:16/rpn:20/cascade:2,hidden=16,detections=10/classes:3"
ONE = "75x101/efficientnet:0.25x0.2/bifpn:16,repeats=1,levels=3-6/effdet:1,detections=10/classes:3"


def run(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": images}), strict=True))


def state(module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def pixels(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, *size)).astype(np.float32)


def test_the_normalization_is_imagenets():
    import torchvision.transforms.v2.functional as F

    image, (scale, shift) = torch.from_numpy(pixels(1, (5, 7))), scale_and_shift()
    torch.testing.assert_close(image * torch.from_numpy(scale) + torch.from_numpy(shift), F.normalize(image / 255, MEAN, STD))


@pytest.mark.parametrize("text", [TWO, ONE])
def test_maps_of_several_images_are_those_of_each(text):
    """Odd sizes, group norm and resizing that is not by two."""
    torch.manual_seed(0)
    detector = build(parse(text)).eval()
    network, images = detector.network, pixels(3, detector.network.blueprint.input)
    model = deployed_model(network, state(detector), map_outputs(network), batch=None)
    together = run(model, images)
    scale, shift = scale_and_shift()
    with torch.no_grad():
        values = detector.dense(torch.from_numpy(images * scale + shift))
    assert set(together) == set(map_outputs(network))
    for name, value in together.items():
        assert len(value) == 3
        np.testing.assert_allclose(value, values[name].numpy(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(run(model, images[1:2])[name], value[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("text", [TWO, ONE])
def test_several_images_are_detected_as_one_after_the_other(text, static):
    torch.manual_seed(1)
    detector = build(parse(text)).eval()
    images = pixels(2, detector.network.blueprint.input)
    weights = state(detector)
    several = run(deployed_model(detector.network, weights, batch=2, static=static), images)
    one = deployed_model(detector.network, weights, static=static)
    for index in range(2):
        for name, value in run(one, images[index : index + 1]).items():
            np.testing.assert_allclose(several[name][index], value[0], rtol=1e-4, atol=1e-3)


def test_weights_are_stored_once_for_all_images():
    detector = build(parse(TWO))
    models = [deployed_model(detector.network, state(detector), batch=count) for count in (1, 8)]
    sizes = [sum(len(tensor.raw_data) for tensor in model.graph.initializer) for model in models]
    assert sizes[1] < sizes[0] + 5000


def test_what_lies_where():
    two, one = expand(parse(TWO)), expand(parse(ONE))
    assert raw_outputs(two) == ("proposals", "head.logits", "head.deltas")
    maps = tuple(f"head.{kind}{level}" for kind in ("classes", "boxes") for level in range(3, 7))
    assert raw_outputs(one) == map_outputs(one) == maps
    assert map_outputs(two) == tuple(f"rpn.{kind}{level}" for kind in ("scores", "deltas") for level in (2, 3, 4))
    for name, blueprint in PRESETS.items():
        assert map_outputs(expand(blueprint)), name


@pytest.mark.parametrize("text", [TWO, ONE, C4, GUIDED, CASCADE])
def test_any_number_of_images_is_detected_as_one_after_the_other(text):
    torch.manual_seed(1)
    detector = build(parse(text)).eval()
    network, weights = detector.network, state(detector)
    images = pixels(3, network.blueprint.input)
    for outputs in (DETECTIONS, raw_outputs(network)):
        one = deployed_model(network, weights, outputs)
        model = deployed_model(network, weights, outputs, batch=None)
        assert all(output.type.tensor_type.shape.dim[0].dim_param == "batch" for output in model.graph.output)
        for count in (1, 3):
            several = run(model, images[:count])
            for index in range(count):
                for name, value in run(one, images[index : index + 1]).items():
                    np.testing.assert_allclose(several[name][index], value[0], rtol=1e-4, atol=1e-3)


def test_weights_are_stored_once_for_any_number_of_images():
    detector = build(parse(TWO))
    one, any_number = (deployed_model(detector.network, state(detector), batch=batch) for batch in (1, None))
    assert any_number.ByteSize() < one.ByteSize() + 5000


@pytest.mark.parametrize(("text", "block"), [(TWO, "rpn.proposals"), (ONE, "head.detections")])
def test_a_static_graph_repeats_no_block(text, block):
    detector = build(parse(text))
    with pytest.raises(InputError, match=f"{block} for any number of images: give the number"):
        deployed_model(detector.network, state(detector), batch=None, static=True)
    outputs = map_outputs(detector.network)
    assert deployed_model(detector.network, state(detector), outputs, batch=None, static=True).graph.node
