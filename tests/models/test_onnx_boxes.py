"""Boxes in ONNX: proposals, pooling and detections equal torchvision's detection code and our modules."""

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import MultiScaleRoIAlign, nms
from torchvision.ops.boxes import clip_boxes_to_image, remove_small_boxes

from fastnas.blueprint import blocks as b
from fastnas.blueprint import expand, parse
from fastnas.errors import InputError
from fastnas.models.anchors import level_anchors
from fastnas.models.blocks import build_block
from fastnas.models.one_stage import OneStageDetector, select_anchors
from fastnas.models.onnx import block_model
from tests.models.test_onnx import noise, run_block

RATIOS = (0.5, 1.0, 2.0)


def reference_proposals(spec: b.Proposals, arrays: list[np.ndarray]) -> np.ndarray:
    levels = len(arrays) // 2
    kept_boxes, kept_scores = [], []
    for level in range(levels):
        score = torch.from_numpy(arrays[level])
        _, count, height, width = score.shape
        score = score.permute(0, 2, 3, 1).flatten()
        delta = torch.from_numpy(arrays[levels + level]).view(count, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
        anchors = torch.from_numpy(level_anchors(spec.input, (height, width), spec.strides[level], spec.scale, spec.ratios))
        score, index = score.topk(min(spec.topk, len(score)))
        boxes = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(delta[index], [anchors[index]])[:, 0]
        boxes = clip_boxes_to_image(boxes, spec.input)
        large = remove_small_boxes(boxes, 1e-3)
        boxes, score = boxes[large], score[large]
        survivors = nms(boxes, score, spec.nms)
        kept_boxes.append(boxes[survivors])
        kept_scores.append(score[survivors])
    boxes, order = torch.cat(kept_boxes), torch.cat(kept_scores).argsort(descending=True)
    boxes = boxes[order][: spec.proposals]
    return torch.cat([boxes, torch.zeros(spec.proposals - len(boxes), 4)]).numpy()


@pytest.mark.parametrize(("topk", "proposals", "scale"), [(50, 60, 4), (1000, 25, 8), (7, 100, 2)])
def test_proposals_equal_torchvision(topk, proposals, scale):
    spec = b.Proposals((97, 131), (4, 8, 16), scale, RATIOS, topk, proposals)
    maps = [(25, 33), (13, 17), (7, 9)]
    arrays = [noise(1, 3, *hw, seed=sum(hw)) for hw in maps] + [noise(1, 12, *hw, seed=hw[0]) for hw in maps]
    (boxes,) = run_block(spec, arrays)
    np.testing.assert_allclose(boxes, reference_proposals(spec, arrays), rtol=1e-5, atol=1e-3)


def test_proposals_where_every_box_is_outside():
    spec = b.Proposals((64, 64), (4,), 2, RATIOS, 10, 5)
    deltas = np.zeros((1, 12, 16, 16), np.float32)
    deltas[:, ::4] = 100.0  # far to the right of the image: nothing is left after clipping
    (boxes,) = run_block(spec, [noise(1, 3, 16, 16), deltas])
    assert not boxes.any()


def random_boxes(count: int, size: tuple[int, int], seed: int = 3) -> np.ndarray:
    random = np.random.default_rng(seed)
    corners = random.random((count, 2)) * (size[1], size[0])
    sides = np.exp(random.uniform(0, np.log(size[1]), (count, 2)))
    return np.concatenate([corners, np.minimum(corners + sides, (size[1], size[0]))], axis=1).astype(np.float32)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_roi_pool_equals_torchvision(levels):
    size = (480, 640)
    strides = tuple(4 << index for index in range(levels))
    maps = [noise(1, 5, size[0] // stride, size[1] // stride, seed=stride) for stride in strides]
    exact = [[0, 0, side, side] for side in (56, 112, 224, 448)]  # on the border between two levels
    boxes = np.concatenate([random_boxes(40, size), np.array(exact, np.float32), np.zeros((3, 4), np.float32)])
    pool = MultiScaleRoIAlign([str(stride) for stride in strides], 7, 2)
    features = {str(stride): torch.from_numpy(value) for stride, value in zip(strides, maps, strict=True)}
    expected = pool(features, [torch.from_numpy(boxes)], [size])
    (pooled,) = run_block(b.RoiPool(strides), [*maps, boxes])
    np.testing.assert_allclose(pooled, expected.numpy(), rtol=1e-4, atol=1e-5)


def reference_detections(spec: b.Detections, boxes, *predicted) -> tuple[np.ndarray, ...]:
    boxes, *logits, deltas = map(torch.from_numpy, (boxes, *predicted))
    decoded = BoxCoder(tuple(np.repeat(spec.weights, 2))).decode(deltas, [boxes])
    decoded = clip_boxes_to_image(decoded, spec.input)
    probability = torch.stack([stage.softmax(-1) for stage in logits]).mean(0)
    found = []
    for label in range(1, probability.shape[1]):
        score, own = probability[:, label], decoded[:, min(label, decoded.shape[1] - 1)]
        rows = torch.where(score > spec.score)[0]
        rows = rows[remove_small_boxes(own[rows], 1e-2)]
        for row in rows[nms(own[rows], score[rows], spec.nms)]:
            found.append((float(score[row]), label, own[row].numpy()))
    found = sorted(found, key=lambda item: -item[0])[: spec.detections]
    found += [(0.0, 0, np.zeros(4))] * (spec.detections - len(found))
    scores, labels, rows = zip(*found, strict=True)
    return np.stack(rows), np.array(scores), np.array(labels)


@pytest.mark.parametrize(("regions", "columns", "detections", "sharpness"), [(40, 4, 60, 2), (60, 21, 15, 3), (12, 2, 100, 1)])
def test_detections_equal_torchvision(regions, columns, detections, sharpness):
    spec = b.Detections((97, 131), detections)
    boxes = random_boxes(regions, spec.input)
    boxes[-2:] = 0  # padding of the proposals never becomes a detection
    arrays = [boxes, sharpness * noise(regions, columns, seed=4), noise(regions, 4 * columns, seed=5)]
    found, scores, labels = run_block(spec, arrays)
    expected, expected_scores, expected_labels = reference_detections(spec, *arrays)
    assert labels.dtype == np.int64 and (labels > 0).any()
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


def test_detections_of_a_cascade_are_the_mean_of_its_stages():
    spec = b.Detections((97, 131), 30, weights=(30.0, 15.0))
    arrays = [random_boxes(40, spec.input), *(3 * noise(40, 4, seed=seed) for seed in (4, 5, 6)), noise(40, 4, seed=7)]
    found, scores, labels = run_block(spec, arrays)
    expected, expected_scores, expected_labels = reference_detections(spec, *arrays)
    assert (labels > 0).sum() > 10
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


def test_refined_boxes_equal_torch():
    spec = b.Refine((97, 131), (20.0, 10.0))
    boxes, deltas = random_boxes(40, spec.input), 9 * noise(40, 4)
    (refined,) = run_block(spec, [boxes, deltas])
    expected = BoxCoder((20.0, 20.0, 10.0, 10.0)).decode(torch.from_numpy(deltas), [torch.from_numpy(boxes)])[:, 0]
    expected = clip_boxes_to_image(expected, spec.input).numpy()
    np.testing.assert_allclose(refined, expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(build_block(spec)(*map(torch.from_numpy, (boxes, deltas))).numpy(), expected, rtol=1e-5, atol=1e-3)


SOFT = [
    (b.Detections((64, 64), 5, suppression="linear"), ((6, 4), (6, 4), (6, 16))),
    (b.AnchorDetections((64, 64), 4, 1, ((1.0, 1.0),), 9, 5, suppression="gaussian"), ((1, 3, 4, 4), (1, 4, 4, 4))),
]


@pytest.mark.parametrize(("spec", "shapes"), SOFT)
def test_soft_nms_is_refused_by_name(spec, shapes):
    with pytest.raises(InputError, match=f"Soft-NMS cannot be written as ONNX: the head's suppression={spec.suppression}"):
        block_model(spec, shapes)


def test_no_detection_at_all():
    logits = np.full((6, 4), -20, np.float32)
    logits[:, 0] = 20
    outputs = run_block(b.Detections((64, 64), 5), [random_boxes(6, (64, 64)), logits, noise(6, 16)])
    assert not any(output.any() for output in outputs)


@pytest.mark.parametrize(("topk", "detections", "classes"), [(5000, 20, 3), (60, 100, 3), (7, 5, 1)])
@pytest.mark.parametrize("head", ["effdet:0", "retinanet:0", "retinanet:0,background=yes"])
def test_anchor_detections_equal_the_module(head, topk, detections, classes):
    text = f"65x97/efficientnet:0.25x0.4/bifpn:8,levels=3-6/{head},octaves=2,topk={topk},detections={detections}"
    network = expand(parse(f"{text}/classes:{classes}"))
    arrays = [2 * noise(*shape, seed=index) - 2 for index, shape in enumerate(network.steps[-1][1].input_shapes)]
    arrays[len(arrays) // 2 :] = [0.2 * array for array in arrays[len(arrays) // 2 :]]
    detector = OneStageDetector(network)
    values = dict(zip(network.steps[-1][1].inputs, map(torch.from_numpy, arrays), strict=True))
    expected = select_anchors(detector.suppression, *detector.outputs(values))[0]
    boxes, scores, labels = run_block(detector.suppression, arrays)
    count = len(expected["scores"])
    assert 3 <= count <= detections and not scores[count:].any() and not labels[count:].any()
    np.testing.assert_array_equal(labels[:count], expected["labels"])
    np.testing.assert_allclose(scores[:count], expected["scores"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(boxes[:count], expected["boxes"], rtol=1e-4, atol=1e-3)
