"""Boxes and scores for the tests of suppression: the kinds that a kernel can get wrong."""

import pytest
import torch
from torch import Tensor

from fastnas import ops


def uniform(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 100
    sizes = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corners, corners + sizes], 1), torch.rand(count, generator=generator)


def clustered(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(7, 2, generator=generator) * 300
    corners = centres[torch.randint(0, 7, (count,), generator=generator)] + torch.randn(count, 2, generator=generator)
    return torch.cat([corners, corners + 30], 1), torch.rand(count, generator=generator)


def integral(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Few values: scores tie, boxes repeat or are empty, and overlaps land exactly on thresholds like 3 of 10."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 12, (count, 2), generator=generator).float()
    sizes = torch.randint(0, 8, (count, 2), generator=generator).float()
    return torch.cat([corners, corners + sizes], 1), torch.randint(0, 6, (count,), generator=generator).float()


def extreme(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sides from subnormal to infinite, areas that overflow and underflow, empty and inverted boxes, NaN, scores alike."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, -0.0, 1e-30, 1e-20, 0.5, 1.0, 3.0, 2.0**24, 1e18, 3e19, float("inf"), -float("inf"), float("nan")])
    weights = torch.tensor([4.0, 1, 1, 2, 6, 6, 6, 2, 3, 3, 0.4, 0.1, 0.3])
    corners = values[torch.multinomial(weights.expand(count, -1), 2, replacement=True, generator=generator)].reshape(count, 2)
    sizes = values[torch.multinomial(weights.expand(count, -1), 2, replacement=True, generator=generator)].reshape(count, 2)
    scores = values[torch.multinomial(weights, count, replacement=True, generator=generator)] if count else torch.zeros(0)
    boxes = torch.cat([corners, corners + sizes], 1)
    inverted = torch.rand(count, generator=generator) < 0.05
    boxes[inverted] = boxes[inverted][:, [2, 3, 0, 1]]
    return boxes, scores


KINDS = [uniform, clustered, integral, extreme]


def by_score(indices: Tensor, scores: Tensor) -> Tensor:
    """Best score first, equal scores by index."""
    indices = indices.sort().values
    return indices[scores[indices].sort(descending=True, stable=True).indices]


def class_by_class(nms, boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float) -> Tensor:
    """What batched_nms has to give, from a peer's `nms` on each class alone."""
    alone = [idxs.new_zeros(0, dtype=torch.int64)]
    for value in idxs.unique():
        members = torch.where(idxs == value)[0]
        alone.append(members[nms(boxes[members], scores[members], threshold)])
    return by_score(torch.cat(alone), scores)


def padded(kept: Tensor, size: int) -> Tensor:
    return torch.cat([kept[:size], kept.new_full((max(size - len(kept), 0),), -1)])


def gpu_or_skip() -> str:
    info = ops.build_info()["cuda"]
    if not info["loaded"]:
        pytest.skip(f"CUDA operators: {info['problem']}")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return "cuda"


@pytest.fixture
def gpu() -> str:
    return gpu_or_skip()


@pytest.fixture
def poisoned_memory():
    """New tensors are filled with NaN and the greatest integers, so that what a kernel forgets to write is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3, dtype=torch.int64).tolist() == [torch.iinfo(torch.int64).max] * 3
    yield
    torch.use_deterministic_algorithms(before)
