"""One training step of every kind of backbone and neck: all weights move, and none is lost."""

import pytest
import torch

from fastnas.blueprint import parse
from fastnas.data.dataset import get_data
from fastnas.models import build
from fastnas.train.config import TrainConfig
from fastnas.train.loop import train

BEHIND = "rpn:20,scale=4,topk=50/rcnn:16/classes:3"


@pytest.mark.parametrize(
    "parts",
    [
        f"basic:1-2,base=8,stem=3x3,parallel=1-2/fpn:16/{BEHIND}",
        f"bottleneck:1-2,base=8,norm=gn,parallel=0-1,tied=no,c1=yes/fpn:16,levels=1-4,extra=conv-c/{BEHIND}",
        f"xbottleneck:1-2,base=16,norm=gnws/fpn:16,levels=2-4,extra=conv-p,norm=gnws/{BEHIND}",
        f"mobilenetv2:0.25/fpn:16,norm=bn/{BEHIND}",
        "basic:1-2-1,base=8/none:3/rpn:20,scale=2,topk=50,sizes=3/c4:7/classes:3",
    ],
)
def test_a_step_moves_all_weights(shapes, parts):
    torch.manual_seed(0)
    detector = build(parse(f"64x80/{parts}"))
    with torch.no_grad():
        for module in detector.modules():  # branches that start silent would keep what is in them from moving
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
                module.weight.fill_(1.0)
    before = {name: parameter.detach().clone() for name, parameter in detector.named_parameters()}
    train(detector, get_data(shapes, "train", (64, 80)), TrainConfig(), 1 / 3, 0)
    after = dict(detector.named_parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after.values())
    assert [name for name, parameter in after.items() if torch.equal(parameter, before[name])] == []
