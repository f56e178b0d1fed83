"""The feature pyramid: the maps of torchvision's with the same weights, from any level to any other."""

from collections import OrderedDict

import pytest
import torch
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from fastnas.blueprint import Fpn, expand, parse
from fastnas.models import build

RESNET50 = "bottleneck:111-2111-211111-211"


def neck_params(network) -> int:
    return sum(block.params for block in network.blocks if block.name.startswith(("backbone.", "neck.")))


@pytest.mark.parametrize(("extra", "params"), [("conv-p", 27_376_704), ("conv-c", 31_505_472)])
def test_retinanets_pyramid_counts_what_torchvisions_does(extra, params):
    """Body and pyramid of torchvision's retinanet_resnet50_fpn and of its second version."""
    assert neck_params(expand(parse(f"800x1333/{RESNET50}/fpn:256,levels=3-7,extra={extra}/effdet:4/classes:90"))) == params


@pytest.mark.parametrize("extra", ["pool", "conv-p", "conv-c"])
@torch.no_grad()
def test_maps_equal_torchvisions(extra):
    torch.manual_seed(0)
    last = 5 if extra == "pool" else 6
    text = f"75x101/basic:1-2-2,base=8,stem=3x3/fpn:16,levels=3-{last},extra={extra}/effdet:1/classes:2"
    ours, widths = build(parse(text)).eval(), {3: 16, 4: 32}
    more = LastLevelMaxPool() if extra == "pool" else LastLevelP6P7(16 if extra == "conv-p" else 32, 16)
    peer = FeaturePyramidNetwork(list(widths.values()), 16, more)
    for index, level in enumerate(widths):
        module = ours.blocks[f"neck.p{level}"]
        for own, other in ((module.lateral, peer.inner_blocks[index][0]), (module.output, peer.layer_blocks[index][0])):
            other.load_state_dict(own.state_dict())
    if extra != "pool":
        peer.extra_blocks.p6.load_state_dict(ours.blocks["neck.p5"].output.state_dict())
        peer.extra_blocks.p7.load_state_dict(ours.blocks["neck.p6"].output.state_dict())
    values = ours.dense(torch.randn(2, 3, 75, 101))
    expected = peer(OrderedDict((str(level), values[f"backbone.stage{level - 1}.block1"]) for level in widths))
    found = [values[f"neck.p{level}"] for level in range(3, last + 1)]
    for own, other in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(own, other)


def test_the_pyramid_begins_and_ends_where_it_is_told_to():
    network = expand(parse(f"64x96/{RESNET50},norm=gn/fpn:8,levels=3-4/rpn:10/rcnn:8/classes:2"))
    names = [block.name for block in network.blocks]
    assert "backbone.stage3.block6" in names and not any(name.startswith("backbone.stage4") for name in names)
    assert [name for name in names if name.startswith("neck.")] == ["neck.p4", "neck.p3"]


def test_a_norm_takes_the_place_of_the_bias():
    plain, normed = (expand(parse(f"64x64/basic:1,base=8/fpn:{fpn}/rpn:10/rcnn:8/classes:2")) for fpn in ("16", "16,norm=gnws"))
    assert normed.params - plain.params == 2 * 16  # two convolutions: a bias each, or scale and shift


def test_levels_by_default_follow_the_backbone():
    assert Fpn(8).levels_over(range(3, 6)) == range(3, 7)
