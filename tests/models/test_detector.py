"""The module is built from the blocks that are counted, and detects as torchvision's Faster R-CNN does."""

import math

import pytest
import torch
import torchvision  # noqa: F401 - registers its operators
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from fastnas.blueprint import PRESETS, expand, parse
from fastnas.blueprint.blocks import RoiPool
from fastnas.models import build
from tests.strategies import blueprints


@settings(max_examples=60)
@given(blueprints())
def test_counted_equals_built(blueprint):
    """Parameters, MACs and every output shape, for random blueprints."""
    compare_counts(blueprint)


@pytest.mark.slow
@settings(max_examples=1000)
@given(blueprints())
def test_counted_equals_built_for_a_thousand(blueprint):
    compare_counts(blueprint)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_built_as_counted(name):
    compare_counts(PRESETS[name])


def _deformable_flops(inputs, weight, *rest, out_shape=None, **options):
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


DEFORMABLE = {torch.ops.torchvision.deform_conv2d: _deformable_flops}  # torch's counter does not know it


def compare_counts(blueprint):
    network = expand(blueprint)
    with torch.device("meta"):
        detector = build(blueprint)
    modules = detector.blocks
    assert sum(p.numel() for p in detector.parameters()) == network.params
    for block in network.blocks:
        module = modules.get(block.name)
        assert sum(p.numel() for p in module.parameters()) == block.params if module else block.params == 0
        if module is None or isinstance(block.spec, RoiPool):  # boxes in, boxes out; RoIAlign needs real boxes
            assert block.macs == 0
            continue
        macs = 0
        for use in block.uses:
            with FlopCounterMode(display=False, custom_mapping=DEFORMABLE) as counter:
                inputs = [torch.empty(shape, device="meta") for shape in use.input_shapes]
                outputs = module.eval()(*inputs, use.index) if block.spec.per_use else module.eval()(*inputs)
            macs += counter.get_total_flops() // 2
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            assert tuple(tuple(output.shape) for output in outputs) == use.output_shapes
        assert macs == block.macs


@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
def test_it_runs_at_any_size_and_returns_boxes_inside(size):
    blueprint = parse(f"{size[0]}x{size[1]}/basic:1-2-1,base=8,stem=3x3/fpn:16/rpn:20,scale=4/rcnn:16/classes:3")
    torch.manual_seed(0)
    found = build(blueprint).eval()(torch.randn(2, 3, *size))
    assert len(found) == 2
    for image in found:
        boxes = image["boxes"]
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= size[1]).all() and (boxes[:, 3] <= size[0]).all()
        assert set(image["labels"].tolist()) <= {1, 2, 3}
        assert (image["scores"].diff() <= 0).all()


def test_detections_equal_torchvision(faster_rcnn_twins):
    ours, peer = (model.eval() for model in faster_rcnn_twins)
    image = torch.rand(2, 3, 192, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = peer(list(image))
        mean, std = torch.tensor(peer.transform.image_mean), torch.tensor(peer.transform.image_std)
        found = ours((image - mean[:, None, None]) / std[:, None, None])
    assert sum(len(e["scores"]) for e in expected) > 20, "the test compares too little"
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own["scores"], other["scores"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(own["boxes"], other["boxes"], rtol=1e-3, atol=1e-2)
        assert torch.equal(own["labels"], other["labels"])


def test_images_of_another_size_are_refused():
    detector = build(parse("64x64/basic:1,base=8,stem=3x3/fpn:16/rpn:20/rcnn:16/classes:3")).eval()
    with pytest.raises(ValueError, match="images of 64x96 do not fit"):
        detector(torch.randn(1, 3, 64, 96))
