"""nms, batched_nms and nms_padded against torchvision's, sorting included on both sides.

Uniform boxes survive for the most part (the quadratic case); clustered ones are what a detector produces. The peers of
batched_nms are torchvision's own (which shifts the coordinates of the classes up to some number of boxes and loops over
them above, and so may keep others) and torchvision's nms class by class; the indices must equal the latter's.
"""

from collections.abc import Iterator

import torch
import torchvision
from _bench import Case, main
from torch import Tensor

from fastnas import ops

THRESHOLD = 0.5
CLASSES = 80


def uniform(count: int, generator: torch.Generator, extent: float = 1000) -> Tensor:
    corners = torch.rand(count, 2, generator=generator) * extent
    return torch.cat([corners, corners + 5 + 100 * torch.rand(count, 2, generator=generator)], 1)


def clustered(count: int, generator: torch.Generator) -> Tensor:
    centres = torch.rand(50, 2, generator=generator) * 1000
    corners = centres[torch.randint(0, 50, (count,), generator=generator)] + 4 * torch.randn(count, 2, generator=generator)
    return torch.cat([corners, corners + 60 + 20 * torch.rand(count, 2, generator=generator)], 1)


def class_by_class(boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float) -> Tensor:
    kept = []
    for value in idxs.unique():
        members = torch.where(idxs == value)[0]
        kept.append(members[torchvision.ops.nms(boxes[members], scores[members], threshold)])
    indices = torch.cat(kept).sort().values
    return indices[scores[indices].sort(descending=True, stable=True).indices]


def image_by_image(boxes: Tensor, scores: Tensor, idxs: Tensor, most: int) -> list[Tensor]:
    """What a detector does without nms_padded."""
    return [torchvision.ops.batched_nms(*image, THRESHOLD)[:most] for image in zip(boxes, scores, idxs, strict=True)]


def case(operator: str, shape: str, ours, peers: dict, arguments: tuple, goal: float | None) -> Case:
    def call(function):
        return lambda: function(*arguments, THRESHOLD)

    truth = class_by_class if operator == "batched_nms" else torchvision.ops.nms
    if not torch.equal(ours(*arguments, THRESHOLD), truth(*arguments, THRESHOLD)):
        raise AssertionError(f"{operator} {shape}: other indices than torchvision's nms")
    candidates = {"fastnas": call(ours)} | {name: call(peer) for name, peer in peers.items()}
    return Case(operator, shape, "fp32", "-", "forward", candidates, goal)


def cases(device: torch.device) -> Iterator[Case]:
    on_gpu = device.type == "cuda"
    goals = {  # uniform, clustered
        ("nms", 1000): (10, 4 if not on_gpu else 10), ("nms", 10_000): (4, 4) if on_gpu else (15, 4),
        ("batched_nms", 1000): (10, 10), ("batched_nms", 100_000): (10, 10),
    }  # fmt: skip
    for count in (100, 1000, 10_000, 100_000):
        for column, make in enumerate((uniform, clustered)):
            generator = torch.Generator().manual_seed(count)
            boxes, scores = make(count, generator), torch.rand(count, generator=generator)
            idxs = torch.randint(0, CLASSES, (count,), generator=generator)
            boxes, scores, idxs = boxes.to(device), scores.to(device), idxs.to(device)
            shape = f"{count} {make.__name__}"
            if count < 100_000 or on_gpu or make is clustered:  # a minute a run of torchvision's for the one left out
                goal = goals.get(("nms", count), (None, None))[column]
                yield case("nms", shape, ops.nms, {"torchvision": torchvision.ops.nms}, (boxes, scores), goal)
            goal = goals.get(("batched_nms", count), (None, None))[column]
            peers = {"torchvision": torchvision.ops.batched_nms, "torchvision class by class": class_by_class}
            yield case("batched_nms", f"{shape} {CLASSES} classes", ops.batched_nms, peers, (boxes, scores, idxs), goal)

    for images, count, most in ((8, 1000, 100), (16, 4000, 300)):
        generator = torch.Generator().manual_seed(count)
        made = torch.stack([clustered(count, generator) for _ in range(images)]).to(device)
        made_scores = torch.rand(images, count, generator=generator).to(device)
        made_idxs = torch.randint(0, CLASSES, (images, count), generator=generator).to(device)

        def ours(boxes=made, scores=made_scores, idxs=made_idxs, most=most):
            return ops.nms_padded(boxes, scores, THRESHOLD, most, idxs)

        def theirs(boxes=made, scores=made_scores, idxs=made_idxs, most=most):
            return image_by_image(boxes, scores, idxs, most)

        shape = f"{images}x{count} clustered {CLASSES} classes, best {most}"
        yield Case("nms_padded", shape, "fp32", "-", "forward", {"fastnas": ours, "torchvision image by image": theirs})


if __name__ == "__main__":
    main("nms", cases)
