"""MobileNetV2: the maps of torchvision's with the same weights."""

import pytest
import torch
import torchvision

from fastnas.blueprint import BlueprintError, MobileNetV2, expand, parse
from fastnas.models import build
from fastnas.models.convert import convert, find_format

LAST = {1: 1, 2: 3, 3: 6, 4: 13, 5: 17}  # torchvision's block that makes each level


@pytest.mark.parametrize("width", ["1", "0.75", "1.4", "0.35"])
def test_parameters_are_those_of_torchvision(width):
    network = expand(parse(f"64x64/mobilenetv2:{width}/fpn:8/rpn:10/rcnn:8/classes:2"))
    with torch.device("meta"):
        peer = torchvision.models.mobilenet_v2(width_mult=float(width)).features[:18]
    blocks = [block for block in network.blocks if block.name.startswith("backbone.")]
    assert sum(block.params for block in blocks) == sum(p.numel() for p in peer.parameters())


@torch.no_grad()
def test_maps_equal_torchvisions():
    torch.manual_seed(0)
    ours = build(parse("75x101/mobilenetv2:0.5,levels=1-5/fpn:8/effdet:0/classes:2")).eval()
    whole = torchvision.models.mobilenet_v2(width_mult=0.5)
    peer = whole.features[:18]
    for module in peer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics of real activations, so that nothing saturates
            module.momentum = None
    images = torch.randn(2, 3, 75, 101)
    peer.train()(images)
    source = whole.state_dict()
    assert find_format(source).blueprint(source).backbone.width == "0.5"
    done = convert(source, ours).check_backbone()
    assert all(name.startswith(("features.18.", "classifier.")) for name in done.unused)
    ours.load_state_dict(done.state, strict=False)
    ours.double(), peer.double().eval()  # the statistics are of few values: roundings of fp32 grow to 1e-4 in the last level
    values, x, network = ours.dense(images.double()), images.double(), ours.network
    found = network.blueprint.backbone.maps
    inputs = {block.name: use.inputs[0] for block, use in network.steps}
    for index, layer in enumerate(peer):
        x = layer(x)
        for level in [level for level in found if LAST[level] == index]:
            torch.testing.assert_close(values[inputs[f"neck.p{level}"]], x, rtol=1e-9, atol=1e-9)
            assert x.std() > 0.1, "the test compares too little"


def test_a_backbone_ends_with_its_last_level():
    network = expand(parse("64x64/mobilenetv2:1,levels=2-4/fpn:8,levels=3-4/rpn:10/rcnn:8/classes:1"))
    assert [block.name for block in network.blocks if block.name.startswith("backbone.")][-1] == "backbone.stage5.block3"


@pytest.mark.parametrize(("width", "says"), [("1.0", "must be written 1"), ("5", "from 0.1 to 4"), ("one", "'one'"), (1.0, "text")])
def test_widths_are_checked(width, says):
    with pytest.raises(BlueprintError, match=says):
        MobileNetV2(width)
