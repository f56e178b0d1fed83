"""RetinaNet's targets and losses against torchvision's, and what is left out."""

import math

import pytest
import torch

from fastnas.blueprint import parse
from fastnas.data.dataset import Target
from fastnas.models import build
from fastnas.train.config import Sampling
from fastnas.train.losses import detection_losses
from tests.train.test_losses import random_boxes

TINY = "64x80/basic:1-2-1,base=8,stem=3x3/fpn:16,levels=3-5,extra=conv-p/retinanet:1/classes:3"


def test_losses_equal_torchvision(retinanet_twins):
    """The second image has no object."""
    ours, peer = (model.train() for model in retinanet_twins)
    images = torch.rand(2, 3, 192, 256, generator=torch.Generator().manual_seed(2))
    boxes = [random_boxes(7, 3), torch.zeros(0, 4)]
    labels = [torch.randint(1, 91, (len(own),), generator=torch.Generator().manual_seed(5)) for own in boxes]
    with torch.no_grad():
        expected = peer(list(images), [{"boxes": own, "labels": k} for own, k in zip(boxes, labels, strict=True)])
        mean, std = torch.tensor(peer.transform.image_mean), torch.tensor(peer.transform.image_std)
        normalized = (images - mean[:, None, None]) / std[:, None, None]
        targets = [Target(own, k, torch.zeros(0, 4)) for own, k in zip(boxes, labels, strict=True)]
        losses = detection_losses(ours, normalized, targets, Sampling(), torch.Generator())
    assert expected["bbox_regression"] > 0.1
    torch.testing.assert_close(losses["head_class"], expected["classification"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses["head_box"], expected["bbox_regression"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("background", ["no", "yes"])
def test_background_inside_a_crowd_costs_nothing(background):
    torch.manual_seed(0)
    detector = build(parse(TINY.replace("retinanet:1", f"retinanet:1,background={background}")))
    everywhere, nothing, none = torch.tensor([[-500.0, -500, 500, 500]]), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    images = torch.randn(1, 3, 64, 80)
    plain = detection_losses(detector, images, [Target(nothing, none, nothing)], Sampling(), torch.Generator())
    crowd = detection_losses(detector, images, [Target(nothing, none, everywhere)], Sampling(), torch.Generator())
    assert plain["head_class"] > 1e-3 and abs(crowd["head_class"]) < 1e-6
    assert math.isclose(plain["head_box"], 0)
