"""Detectors without a pyramid: the rest of the backbone runs on regions, as torchvision's layers do."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

from fastnas.blueprint import BlueprintError, expand, parse
from fastnas.models import boxes, build

TEXT = "75x101/basic:11-21-21-21,base=64/none:4/rpn:20,scale=2,sizes=3/c4:14/classes:3"


@torch.no_grad()
def test_the_head_is_the_backbones_last_stage():
    """ResNet-18: torchvision's layer4 on the pooled regions, mean, predictors."""
    torch.manual_seed(0)
    ours, peer = build(parse(TEXT)).eval(), torchvision.models.resnet18().eval()
    mine = {name: value for name, value in ours.state_dict().items() if name.startswith("backbone.")}
    for own, other in zip(mine.values(), list(peer.state_dict().values())[:-2], strict=True):  # both in order of execution
        own.copy_(other)
    images = torch.randn(2, 3, 75, 101)
    regions = torch.tensor([[0, 3, 5, 40, 60], [1, 0, 0, 101, 75], [1, 50, 20, 90, 70]], dtype=torch.float32)
    values = ours.dense(images)
    logits, deltas, _ = ours.stage(values, ours.stages[0], regions)
    x = peer.maxpool(peer.relu(peer.bn1(peer.conv1(images))))
    x = peer.layer3(peer.layer2(peer.layer1(x)))
    pooled = torchvision.ops.roi_align(x, regions, 14, 1 / 16, 2)
    mean = peer.layer4(pooled).mean((2, 3))
    head = ours.blocks["head.box"]
    torch.testing.assert_close(logits, F.linear(mean, head.cls_score.weight, head.cls_score.bias), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deltas, F.linear(mean, head.bbox_pred.weight, head.bbox_pred.bias), rtol=1e-4, atol=1e-6)
    assert deltas.shape == (3, 12) and mean.std() > 0.1, "the test compares too little"


def test_deltas_without_the_backgrounds_select_the_same_boxes():
    torch.manual_seed(0)
    spec = expand(parse(TEXT)).blocks[-1].spec
    regions = F.pad(torch.rand(30, 4).cumsum(1) * 30, (1, 0))
    logits, deltas = torch.randn(30, 4), torch.randn(30, 12)
    (found,) = boxes.select_detections(spec, regions, [logits], deltas, 1)
    (expected,) = boxes.select_detections(spec, regions, [logits], F.pad(deltas, (4, 0)), 1)
    assert len(found["boxes"]) > 5 and all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("none:4", "none:5", "runs what the backbone has behind one level"),
        ("none:4", "fpn:16", "runs what the backbone has behind one level"),
        ("base=64/none:4", "base=64,c1=yes/none:1", "from 2 to below the backbone's last level 5"),
        ("none:4", "none:6", "levels 2 to 5"),
        ("c4:14", "c4:0", "»0«"),
        ("sizes=3", "sizes=9", "»9«"),
    ],
)
def test_what_does_not_fit_is_refused(old, new, says):
    with pytest.raises(BlueprintError, match=says):
        parse(TEXT.replace(old, new))


def test_a_level_alone_goes_with_every_head():
    names = [block.name for block in expand(parse("64x64/basic:1-1-1,base=8/none:3/rpn:10/rcnn:8/classes:2")).blocks]
    assert "backbone.stage2.block1" in names and "backbone.stage3.block1" not in names
