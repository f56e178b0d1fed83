"""EfficientDet's targets and losses against effdet's, and that a one-stage detector learns."""

import effdet
import pytest
import torch
import torch.nn.functional as F
from effdet.anchors import AnchorLabeler, Anchors
from effdet.loss import DetectionLoss

from fastnas.blueprint import parse
from fastnas.blueprint.parts.effdet import ASPECTS
from fastnas.data.dataset import Target, get_data
from fastnas.models import build
from fastnas.models.anchors import cell_anchors
from fastnas.train.config import TrainConfig
from fastnas.train.efficientdet import ALPHA, DELTA, GAMMA, anchor_losses, match_anchors
from fastnas.train.evaluate import coco_metrics, detect
from fastnas.train.focal import focal_loss
from fastnas.train.loop import train

SIZE, CLASSES = (97, 131), 5
MAPS = [(-(-SIZE[0] // 2**level), -(-SIZE[1] // 2**level)) for level in range(3, 8)]
NOTHING = torch.zeros(0, 4)


def anchors() -> torch.Tensor:
    return torch.cat([torch.from_numpy(cell_anchors(SIZE, hw, 4, 3, ASPECTS)) for hw in MAPS])


def random_boxes(count: int, seed: int) -> torch.Tensor:
    draw = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    corner = draw[:, :2] * torch.tensor([SIZE[1] - 40.0, SIZE[0] - 40.0])
    return torch.cat([corner, corner + 6 + draw[:, 2:] * 60], 1)


def labeler() -> AnchorLabeler:
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    return AnchorLabeler(Anchors(3, 7, 3, config.aspect_ratios, 4.0, SIZE), CLASSES, match_threshold=0.5)


def random_targets() -> list[Target]:
    labels = [torch.randint(1, CLASSES + 1, (count,), generator=torch.Generator().manual_seed(count)) for count in (7, 3)]
    return [Target(random_boxes(len(own), seed), own, NOTHING) for seed, own in enumerate(labels)]


@pytest.mark.parametrize("seed", range(6))
def test_matches_equal_effdet(seed):
    boxes = random_boxes(9, seed)
    boxes[5] = boxes[2]  # the same best anchor: the first box has it
    labels = torch.randint(1, CLASSES + 1, (9,), generator=torch.Generator().manual_seed(seed))
    classes, codes, positives = labeler().label_anchors(boxes[:, [1, 0, 3, 2]], labels)
    matched = match_anchors(boxes, anchors(), NOTHING)
    own = torch.where(matched >= 0, labels[matched] - 1, -1)
    assert torch.equal(own, torch.cat([level.flatten() for level in classes]))
    assert 9 <= positives == (matched >= 0).sum()


def test_losses_equal_effdet():
    generator = torch.Generator().manual_seed(0)
    targets = random_targets()
    classes = [torch.randn(2, 9 * CLASSES, *hw, generator=generator) * 2 - 3 for hw in MAPS]
    boxes = [torch.randn(2, 36, *hw, generator=generator) * 0.3 for hw in MAPS]
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    assert (config.alpha, config.gamma, config.delta) == (ALPHA, GAMMA, DELTA)
    config.num_classes = CLASSES
    labelled = labeler().batch_label_anchors([t.boxes[:, [1, 0, 3, 2]] for t in targets], [t.labels for t in targets])
    expected, expected_class, expected_box = DetectionLoss(config)(classes, boxes, *labelled)
    logits = torch.cat([m.permute(0, 2, 3, 1).reshape(2, -1, CLASSES) for m in classes], 1)
    codes = torch.cat([m.permute(0, 2, 3, 1).reshape(2, -1, 4) for m in boxes], 1)[..., [1, 0, 3, 2]]
    losses = anchor_losses(logits, codes, anchors(), targets)
    torch.testing.assert_close(losses["head_class"], expected_class, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["head_box"], 50 * expected_box, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sum(losses.values()), expected, rtol=1e-4, atol=1e-5)


def test_focal_loss_is_its_formula_and_has_its_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-2, 4, (3, 7), generator=generator)
    truth = F.one_hot(labels.clamp(min=0), 4) * (labels >= 0)[..., None]
    probability = logits.sigmoid()
    right = torch.where(truth == 1, probability, 1 - probability)
    formula = -torch.where(truth == 1, 0.3, 0.7) * (1 - right) ** 2 * right.log() * (labels != -2)[..., None]
    torch.testing.assert_close(focal_loss(logits, labels, 0.3, 2.0), formula.sum())
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels, 0.3, 2.0), logits)


def test_focal_loss_of_extreme_logits_is_finite():
    logits = torch.tensor([[-200.0, 200.0], [90.0, -90.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, -1]), ALPHA, GAMMA)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_anchors_inside_a_crowd_are_left_out():
    boxes, crowd = random_boxes(2, 0), torch.tensor([[0.0, 0, SIZE[1], SIZE[0]]])
    alone, beside = match_anchors(boxes, anchors(), NOTHING), match_anchors(boxes, anchors(), crowd)
    assert torch.equal(alone >= 0, beside >= 0) and (beside == -2).sum() > (beside == -1).sum()
    logits = torch.zeros(1, len(beside), CLASSES)
    target = Target(boxes, torch.tensor([1, 2]), crowd)
    less = anchor_losses(logits, torch.zeros(1, len(beside), 4), anchors(), [target])["head_class"]
    negatives = (beside == -1).sum() * CLASSES + (beside >= 0).sum() * (CLASSES - 1)
    expected = (0.75 * negatives + 0.25 * (beside >= 0).sum()) * 0.5**GAMMA * torch.log(torch.tensor(2.0))
    torch.testing.assert_close(less, expected / ((beside >= 0).sum() + 1))


TINY = "64x80/efficientnet:0.25x0.4,padding=symmetric/bifpn:16,repeats=1,levels=3-6/effdet:1,scale=3/classes:3"


def test_it_learns_the_generated_set(shapes):
    data = get_data(shapes, "train", (64, 80))
    torch.manual_seed(0)
    lines = []
    averaged = train(build(parse(TINY)), data, TrainConfig(batch_size=8, lr=5e-3, ema=0.9), 8, 0, lines.append)
    assert set(lines[-1]["losses"]) == {"head_class", "head_box"}
    first, last = (sum(line["loss"] for line in part) for part in (lines[:3], lines[-3:]))
    assert last < 0.75 * first
    results = detect(averaged, data)
    assert 0 <= coco_metrics(data.split, results)["ap"] <= 1 and results
