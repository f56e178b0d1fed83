"""soft_nms against a Python loop over torch operators, as the effdet package and detectron2's extensions have it.

`loop` computes one row of overlaps for each chosen box and closes up what is left; `loop, no closing up` keeps all boxes in
place, which spares copies but never gets cheaper. Boxes are as in bench_nms.py.
"""

from collections.abc import Iterator

import torch
from _bench import Case, main
from bench_nms import clustered, uniform
from torch import Tensor

from fastnas import ops

IOU_THRESHOLD, SIGMA, SCORE_THRESHOLD = 0.3, 0.5, 0.001


def overlaps(box: Tensor, boxes: Tensor) -> Tensor:
    sides = (torch.min(box[2:], boxes[:, 2:]) - torch.max(box[:2], boxes[:, :2])).clamp_(min=0)
    intersection = sides[:, 0] * sides[:, 1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return intersection / ((box[2] - box[0]) * (box[3] - box[1]) + areas - intersection)


def factors(iou: Tensor, method: str) -> Tensor:
    return torch.exp(-(iou * iou) / SIGMA) if method == "gaussian" else torch.where(iou > IOU_THRESHOLD, 1 - iou, 1.0)


def loop(boxes: Tensor, scores: Tensor, method: str) -> tuple[Tensor, Tensor]:
    places, indices, rescored = torch.arange(len(scores), device=scores.device), [], []
    while len(scores):
        best = scores.argmax()
        indices.append(places[best])
        rescored.append(scores[best])
        scores = scores * factors(overlaps(boxes[best], boxes), method)
        scores[best] = 0
        left = scores > SCORE_THRESHOLD
        boxes, scores, places = boxes[left], scores[left], places[left]
    return torch.stack(indices), torch.stack(rescored)


def loop_in_place(boxes: Tensor, scores: Tensor, method: str) -> tuple[Tensor, Tensor]:
    scores, indices, rescored = scores.clone(), [], []
    while True:
        value, best = scores.max(0)
        if not value > SCORE_THRESHOLD:
            return torch.stack(indices), torch.stack(rescored)
        indices.append(best)
        rescored.append(value)
        scores *= factors(overlaps(boxes[best], boxes), method)
        scores[best] = 0


def cases(device: torch.device) -> Iterator[Case]:
    for count in (200, 2000):
        for make in (uniform, clustered):
            for method in ("linear", "gaussian"):
                generator = torch.Generator().manual_seed(count)
                boxes, scores = make(count, generator).to(device), torch.rand(count, generator=generator).to(device)

                def ours(boxes=boxes, scores=scores, method=method):
                    return ops.soft_nms(boxes, scores, method, IOU_THRESHOLD, SIGMA, SCORE_THRESHOLD)

                def peer(function, boxes=boxes, scores=scores, method=method):
                    return lambda: function(boxes, scores, method)

                # By box, not by place: fp64 may choose two boxes of nearly equal scores the other way round.
                rescored = torch.zeros_like(scores).index_put(ours()[:1], ours()[1]).double()
                expected, expected_scores = loop_in_place(boxes.double(), scores.double(), method)
                error = (rescored - torch.zeros_like(rescored).index_put((expected,), expected_scores)).abs().max().item()
                if error > SCORE_THRESHOLD:
                    raise AssertionError(f"soft_nms {method} {count}: scores differ by {error} from the loop's in fp64")
                yield Case(
                    "soft_nms", f"{count} {make.__name__} {method}", "fp32", "-", "forward",
                    {"fastnas": ours, "loop": peer(loop), "loop, no closing up": peer(loop_in_place)},
                    goal=None if count < 2000 else 50 if device.type == "cuda" else 20,
                    max_error=error,
                )  # fmt: skip


if __name__ == "__main__":
    main("soft_nms", cases)
