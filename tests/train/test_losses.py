"""Targets and losses against torchvision's, with samplers that take everything so that nothing is random."""

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou

from fastnas.data.dataset import Target
from fastnas.models.boxes import decode, encode
from fastnas.train.config import Sampling
from fastnas.train.losses import detection_losses
from fastnas.train.matching import drop_crowded, match, pairwise_iou

EVERYTHING = Sampling(anchors=100_000, regions=10_000, region_positives=0.25, proposals=1000)


def random_boxes(count, seed, size=(192, 256)):
    draw = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    corner = draw[:, :2] * torch.tensor([size[1] - 60.0, size[0] - 60.0])
    return torch.cat([corner, corner + 8 + draw[:, 2:] * 50], 1)


def test_losses_equal_torchvision(faster_rcnn_twins):
    ours, peer = (model.train() for model in faster_rcnn_twins)
    for sampler in (peer.rpn.fg_bg_sampler, peer.roi_heads.fg_bg_sampler):
        sampler.batch_size_per_image = 10**7
    peer.rpn._pre_nms_top_n = peer.rpn._post_nms_top_n = {"training": 1000, "testing": 1000}
    images = torch.rand(2, 3, 192, 256, generator=torch.Generator().manual_seed(2))
    boxes = [random_boxes(7, 3), random_boxes(4, 4)]
    labels = [torch.randint(1, 91, (len(b),), generator=torch.Generator().manual_seed(5)) for b in boxes]
    with torch.no_grad():
        expected = peer(list(images), [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)])
        mean, std = torch.tensor(peer.transform.image_mean), torch.tensor(peer.transform.image_std)
        normalized = (images - mean[:, None, None]) / std[:, None, None]
        targets = [Target(b, k, torch.zeros(0, 4)) for b, k in zip(boxes, labels, strict=True)]
        losses = detection_losses(ours, normalized, targets, EVERYTHING, torch.Generator().manual_seed(0))
    for own, other in {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "head_class": "loss_classifier",
        "head_box": "loss_box_reg",
    }.items():
        torch.testing.assert_close(losses[own], expected[other], rtol=2e-3, atol=1e-5, msg=lambda m, own=own: f"{own}: {m}")


def test_encode_and_decode_equal_torchvision():
    reference, boxes = random_boxes(50, 0), random_boxes(50, 1)
    weights, coder = (10.0, 5.0), BoxCoder((10.0, 10.0, 5.0, 5.0))
    deltas = encode(boxes, reference, weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, reference))
    torch.testing.assert_close(decode(deltas, reference, weights), boxes, rtol=1e-4, atol=1e-3)
    huge = deltas * 50
    torch.testing.assert_close(decode(huge, reference, weights), coder.decode_single(huge, reference))


@pytest.mark.parametrize(("low", "high", "rescue"), [(0.3, 0.7, True), (0.5, 0.5, False)])
def test_match_equals_torchvision(low, high, rescue):
    iou = pairwise_iou(random_boxes(9, 1), random_boxes(400, 0))
    torch.testing.assert_close(iou, box_iou(random_boxes(9, 1), random_boxes(400, 0)))
    assert torch.equal(match(iou, low, high, rescue), Matcher(high, low, allow_low_quality_matches=rescue)(iou))


def test_crowd_regions_are_no_negatives():
    boxes = torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40], [8, 0, 18, 10]])
    dropped = drop_crowded(torch.tensor([-1, -1, -1]), boxes, torch.tensor([[0.0, 0, 12, 12]]))
    assert dropped.tolist() == [-2, -1, -1]
    assert drop_crowded(torch.tensor([0, -1, -1]), boxes, torch.tensor([[0.0, 0, 12, 12]])).tolist() == [0, -1, -1]
