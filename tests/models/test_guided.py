"""Guided anchoring: its head as ONNX, the selection of proposals against a reference, and what a detector with it finds."""

import numpy as np
import pytest
import torch
from torchvision.ops import nms

from fastnas.blueprint import blocks as b
from fastnas.blueprint import expand, parse
from fastnas.models import build
from fastnas.models.blocks import build_block
from fastnas.models.onnx import block_model, in_precision, network_model
from fastnas.models.proposals import make_anchors, read_maps, select_proposals
from tests.models.test_onnx import noise, randomize, run, run_block, state

SPEC = b.GuidedProposals((97, 131), (4, 8, 16), 3, 60, 40)
MAPS = [(25, 33), (13, 17), (7, 9)]


def maps() -> list[np.ndarray]:
    """Of three levels; about every second cell is unlikely."""
    kinds = ((1, 2.0, -4.6), (2, 3.0, 0.0), (1, 1.0, 0.0), (4, 2.0, 0.0))
    return [
        gain * noise(1, count, *hw, seed=100 * kind + hw[0]) + np.float32(shift)
        for kind, (count, gain, shift) in enumerate(kinds) for hw in MAPS
    ]  # fmt: skip


def reference(arrays: list[np.ndarray]) -> np.ndarray:
    """Cell by cell, in float64."""
    found = []
    for level, (stride, (rows, columns)) in enumerate(zip(SPEC.strides, MAPS, strict=True)):
        location, shape, score, delta = (arrays[kind * 3 + level][0].astype(np.float64) for kind in range(4))
        likely = 1 / (1 + np.exp(-location[0])) >= 0.01
        cells = [(score[0, r, c], r, c) for r in range(rows) for c in range(columns) if likely[r, c]]
        boxes, scores = [], []
        for value, r, c in sorted(cells, reverse=True)[: SPEC.topk]:
            side = np.array([2 * round(3 * stride / 2)] * 2) * np.exp(0.14 * shape[:, r, c])
            step = np.array([131 // columns, 97 // rows])
            center = np.array([c, r]) * step + np.array([0.07, 0.07]) * delta[:2, r, c] * side
            side = side * np.exp(np.minimum(0.11 * delta[2:, r, c], np.log(1000 / 16)))
            box = np.concatenate([center - side / 2, center + side / 2]).clip(0, [131, 97, 131, 97])
            if (box[2:] - box[:2]).min() >= 1e-3:
                boxes.append(box)
                scores.append(value)
        kept = nms(torch.tensor(np.array(boxes)), torch.tensor(scores), 0.7)
        found += [(scores[index], boxes[index]) for index in kept.tolist()]
    found = [box for _, box in sorted(found, key=lambda item: -item[0])][: SPEC.proposals]
    return np.stack(found)


def test_proposals_equal_a_reference():
    arrays = maps()
    expected = reference(arrays)
    assert len(expected) == SPEC.proposals
    outputs = read_maps(SPEC, list(map(torch.from_numpy, arrays)), make_anchors(SPEC, MAPS))
    (own,) = select_proposals(SPEC, outputs)
    np.testing.assert_allclose(own.numpy(), expected, rtol=1e-4, atol=1e-2)
    (other,) = run_block(SPEC, arrays)
    np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-2)
    (everywhere,) = select_proposals(SPEC, outputs, everywhere=True)
    assert not torch.equal(everywhere, own), "in training the location branch leaves nothing out"


def test_no_likely_cell_gives_no_proposal():
    arrays = maps()
    arrays[:3] = [np.full_like(array, -20) for array in arrays[:3]]
    outputs = read_maps(SPEC, list(map(torch.from_numpy, arrays)), make_anchors(SPEC, MAPS))
    assert len(select_proposals(SPEC, outputs)[0]) == 0
    assert not run_block(SPEC, arrays)[0].any()


@pytest.mark.parametrize("channels", [16, 6])
def test_the_head_as_onnx_equals_torch(channels):
    """6 channels: in two groups of offsets instead of four."""
    spec, value = b.GuidedHead(channels), noise(1, channels, 6, 9)
    module = randomize(build_block(spec))
    module.offset.weight.data *= 3  # samples far from their places
    with torch.no_grad():
        expected = module(torch.from_numpy(value))
    for output, truth in zip(run_block(spec, [value], state(module, "block.")), expected, strict=True):
        np.testing.assert_allclose(output, truth.numpy(), rtol=1e-4, atol=1e-4)
    model = in_precision(block_model(spec, (value.shape,), weights=state(module, "block.")), "fp16")
    assert model.opset_import[0].version == 19
    for output, truth in zip(run(model, {"in0": value.astype(np.float16)}), expected, strict=True):
        np.testing.assert_allclose(output, truth.numpy(), rtol=0.1, atol=0.05)


def test_only_a_network_with_deformable_convolutions_needs_a_later_opset():
    texts = [f"64x96/basic:1-2,base=8/fpn:8/{rpn}:20/rcnn:16/classes:3" for rpn in ("rpn", "garpn")]
    assert [network_model(expand(parse(text))).opset_import[0].version for text in texts] == [17, 19]


def test_objects_of_every_cell_start_unlikely_and_offsets_carry_no_gradient():
    head = build(parse("64x64/basic:1-2,base=8/fpn:16/garpn:20/rcnn:16/classes:3")).blocks["rpn.head"]
    torch.testing.assert_close(head.location.bias.sigmoid(), torch.tensor([0.01]))
    location, shape, score, deltas = head(torch.randn(2, 16, 8, 8))
    (score.sum() + deltas.sum()).backward()
    assert head.shape.weight.grad is None and head.offset.weight.grad.any() and head.adaption.weight.grad.any()
