"""Every kind of head trains: finite losses and gradients whatever the images hold, and one step of the loop."""

import pytest
import torch

from fastnas.blueprint import parse
from fastnas.blueprint.parts import PARTS
from fastnas.data.dataset import Target, get_data
from fastnas.models import build
from fastnas.train.config import Sampling, TrainConfig
from fastnas.train.loop import train
from fastnas.train.losses import LOSSES, detection_losses
from fastnas.train.precision import autocast
from tests.train.test_losses import random_boxes

SERIAL = "64x80/basic:1-2-1,base=8,stem=3x3/fpn:16"
DETECTORS = {
    "faster": f"{SERIAL}/rpn:20,scale=4/rcnn:16",
    "guided": f"{SERIAL}/garpn:20,scale=2/rcnn:16,quality=high",
    "cascade": f"{SERIAL}/rpn:20,scale=4/cascade:3,hidden=16",
    "guided cascade": f"{SERIAL}/garpn:20,scale=2/cascade:2,hidden=16,quality=high,suppression=linear",
    "retinanet": f"{SERIAL},levels=3-5,extra=conv-p/retinanet:1",
    "retinanet, norms": f"{SERIAL},levels=3-5,extra=conv-p/retinanet:1,norm=bn,background=yes,suppression=gaussian",
    "efficientdet": "64x80/efficientnet:0.25x0.4,padding=symmetric/bifpn:16,repeats=1,levels=3-6/effdet:1,scale=3",
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("counts", [(0, 0), (0, 3)])
@pytest.mark.parametrize("name", DETECTORS)
def test_losses_are_finite_with_one_class_and_images_without_objects(name, counts, precision):
    torch.manual_seed(0)
    detector = build(parse(f"{DETECTORS[name]}/classes:1")).train()
    targets = [Target(random_boxes(n, n, (64, 80)) * 0.2, torch.ones(n, dtype=torch.int64), torch.zeros(0, 4)) for n in counts]
    with autocast(precision):
        losses = detection_losses(detector, torch.randn(2, 3, 64, 80), targets, Sampling(), torch.Generator().manual_seed(0))
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total) and all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in detector.parameters())


@pytest.mark.parametrize("name", DETECTORS)
def test_one_step_of_the_loop(name, shapes):
    data = get_data(shapes, "train", (64, 80))
    torch.manual_seed(0)
    detector, lines = build(parse(f"{DETECTORS[name]}/classes:3")), []
    before = {key: value.clone() for key, value in detector.state_dict().items() if value.is_floating_point()}
    averaged = train(detector, data, TrainConfig(batch_size=8), 1 / 3, 0, lines.append)
    after = detector.state_dict()
    assert sum(torch.equal(before[key], after[key]) for key in before) < len(before) / 10, "nearly all weights have moved"
    assert set(lines[-1]["losses"]) == set(detection_losses_of(detector))
    for image in averaged(torch.randn(2, 3, 64, 80)):
        assert torch.isfinite(image["boxes"]).all() and torch.isfinite(image["scores"]).all()


def detection_losses_of(detector) -> list[str]:
    blueprint = detector.network.blueprint
    stages = len(getattr(blueprint.head, "training", ())) or 1
    heads = ["head"] if stages == 1 else [f"head{stage}" for stage in range(1, stages + 1)]
    proposals = [] if blueprint.rpn is None else ["rpn_objectness", "rpn_box"]
    proposals += ["rpn_location", "rpn_shape"] if type(blueprint.rpn).__name__ == "GuidedRpn" else []
    return proposals + [f"{head}_{part}" for head in heads for part in ("class", "box")]


def test_every_head_has_losses():
    assert set(LOSSES) == {part.cls for part in PARTS.values() if part.slot == "head"}
