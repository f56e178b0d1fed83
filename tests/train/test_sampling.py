"""Which anchors and regions enter the loss: no background inside crowds, no more positives than their share."""

import torch

from fastnas.blueprint import parse
from fastnas.blueprint.parts.rcnn import Stage
from fastnas.data.dataset import Target
from fastnas.models import build
from fastnas.train.config import Sampling
from fastnas.train.losses import detection_losses
from fastnas.train.rpn import anchor_losses
from fastnas.train.two_stage import _sample_regions

TRUTH = torch.tensor([[10.0, 10, 30, 30]])
LABEL = torch.tensor([2])
NOTHING = torch.zeros(0, 4)
STAGE = Stage(0.5, (10.0, 5.0))
SMALL = Sampling(anchors=16, anchor_positives=0.25, regions=16, region_positives=0.25)


def rng():
    return torch.Generator().manual_seed(0)


def boxes_on_and_off_the_truth(count):
    """`count` boxes that match TRUTH and as many far away from it, all different."""
    shift = torch.arange(count)[:, None] * 0.01
    return torch.cat([TRUTH + shift, TRUTH + 60 + shift])


def test_background_inside_a_crowd_costs_nothing():
    """An image that is all crowd and has no object has nothing to learn from, in the RPN and in the head."""
    torch.manual_seed(0)
    detector = build(parse("64x64/basic:1-2,base=8,stem=3x3/fpn:16/rpn:20,scale=4/rcnn:16/classes:1")).train()
    everywhere, images = torch.tensor([[-500.0, -500, 500, 500]]), torch.randn(1, 3, 64, 64)
    none = torch.zeros(0, dtype=torch.int64)
    plain = detection_losses(detector, images, [Target(NOTHING, none, NOTHING)], Sampling(), rng())
    crowd = detection_losses(detector, images, [Target(NOTHING, none, everywhere)], Sampling(), rng())
    for name in ("rpn_objectness", "head_class"):
        assert plain[name] > 0.1 and crowd[name] == 0, name


def test_a_crowd_beside_an_object_takes_only_the_background_inside_it():
    proposals = boxes_on_and_off_the_truth(8)
    for ignore, negatives in ((NOTHING, 8), (TRUTH + 60, 0), (TRUTH, 8)):
        everything = Sampling(regions=100, region_positives=1.0)
        regions = _sample_regions(proposals, Target(TRUTH, LABEL, ignore), STAGE, everything, rng())
        assert (regions.labels == 0).sum() == negatives and (regions.labels == 2).sum() == 9, "8 proposals and the truth"


def test_positive_regions_keep_to_their_share():
    regions = _sample_regions(boxes_on_and_off_the_truth(50), Target(TRUTH, LABEL, NOTHING), STAGE, SMALL, rng())
    assert len(regions.boxes) == len(regions.labels) == 16
    assert (regions.labels == 2).sum() == 4 == len(regions.deltas), "a quarter of 16"
    assert (regions.boxes[:4] < 40).all() and (regions.boxes[4:] > 40).all()


def test_positive_anchors_keep_to_their_share():
    anchors = boxes_on_and_off_the_truth(50)
    scores, deltas = torch.zeros(1, 100, requires_grad=True), torch.ones(1, 100, 4, requires_grad=True)
    sum(anchor_losses(scores, deltas, anchors[None], [Target(TRUTH, LABEL, NOTHING)], SMALL, rng()).values()).backward()
    assert (scores.grad[0, :50] < 0).sum() == 4 == deltas.grad[0].any(1).sum(), "a quarter of 16"
    assert (scores.grad[0, 50:] > 0).sum() == 12 and (scores.grad != 0).sum() == 16
