"""Soft-NMS (Bodla et al. 2017). Kernels: csrc/cpu/soft_nms.cpp, csrc/cuda/soft_nms.cu."""

import sys

import torch
from torch import Tensor

from fastnas.errors import InputError
from fastnas.ops._library import register_fake, require_library

METHODS = ("linear", "gaussian")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    max_output: int | None = None,
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Lowers the scores of boxes that overlap better ones, instead of dropping them.

    Only boxes with score > score_threshold are in play. Again and again the best of them is chosen (the lowest index of equal
    scores) and the score of every other one of its class is multiplied by

        linear:    1 - iou                 where iou > iou_threshold, else 1
        gaussian:  exp(-iou^2 / sigma)     where iou > 0, else 1

    and whatever is no longer above score_threshold is out, until none is in play or max_output are chosen. That is what the
    `effdet` package does, but that it returns the best box even if its score was not above the threshold to begin with, and
    shifts coordinates to keep classes apart. `mmcv` compares with >= in both places and leaves ties to the order in memory.

    A box whose score is NaN, or becomes so, is out. An overlap that is not a number (both boxes empty, or infinite) is none.

    Args:
        boxes: [N, 4] as (x1, y1, x2, y2), fp32, fp16, bf16, and on the CPU fp64. Computed in fp32; in fp64 on the CPU when
            boxes or scores are fp64.
        scores: [N], any of these types.
        method: "linear" or "gaussian".
        iou_threshold: of the linear method. sigma: of the gaussian method, above 0.
        idxs: [N] class of each box, any integer type; boxes of different classes do not affect each other. None: one class.

    Returns:
        indices [K] int64 and rescored [K] in the type of the scores, both in the order of choice, so the best score first.
        `rescored` is differentiable by `scores`, with the choice and the overlaps held constant: its derivative is the product
        of the factors. Neither result is differentiable by `boxes`.

    Raises:
        InputError: an unknown method. RuntimeError: wrong shapes, types or devices. FastnasError: the operators are not built.
    """
    require_library()
    if method not in METHODS:
        raise InputError(f'soft_nms: method is {method!r}, expected "linear" or "gaussian"')
    most = sys.maxsize if max_output is None else max_output
    indices, rescored, decay = torch.ops.fastnas.soft_nms.default(
        boxes.detach(), scores.detach(), method == "gaussian", iou_threshold, sigma, score_threshold, most, idxs
    )
    if torch.is_grad_enabled() and scores.requires_grad:
        rescored = (scores[indices].to(decay.dtype) * decay).to(scores.dtype)  # the product that the kernel has computed
    return indices, rescored


@register_fake("soft_nms", torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
def _soft_nms_shapes(
    boxes: Tensor,
    scores: Tensor,
    gaussian: bool,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    max_output: int,
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    bounds = [size for size in (boxes.size(0), max_output) if isinstance(size, int) and size < sys.maxsize]
    chosen = torch.library.get_ctx().new_dynamic_size(min=0, max=min(bounds, default=None))
    wide = torch.float64 in (boxes.dtype, scores.dtype)
    decay = scores.new_empty(chosen, dtype=torch.float64 if wide else torch.float32)
    return boxes.new_empty(chosen, dtype=torch.int64), scores.new_empty(chosen), decay
