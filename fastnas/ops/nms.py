"""Non-maximum suppression: alone, per class, and with results of fixed size. Kernels: csrc/cpu/nms.cpp, csrc/cuda/nms.cu.

What is no proper box. With iou_threshold >= 0 a box with a NaN coordinate, of infinite area or without area neither drops
another box nor is dropped: its overlap is NaN or 0. So it is with two boxes whose areas add up to infinity. A box with x2 < x1
or y2 < y1 has an intersection of 0 with every box. Nothing raises, and CPU and GPU decide alike.
"""

import torch
from torch import Tensor

from fastnas.ops._library import register_fake, require_library


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedily keeps the best-scored boxes and drops those that overlap a kept one; the indices are torchvision's.

    Args:
        boxes: [N, 4] as (x1, y1, x2, y2), fp32, fp64, fp16 or bf16 (the 16-bit types are computed in fp32).
        scores: [N], any of these types. Equal scores rank by index; NaN ranks first, as torch.sort has it.
        iou_threshold: a box goes when its intersection over union with a kept box is greater than this.

    Returns:
        int64 indices of the kept boxes, best score first. Not differentiable.

    Raises:
        RuntimeError: wrong shapes or types. FastnasError: the operators are not built.
    """
    require_library()
    return torch.ops.fastnas.nms.default(boxes, scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` inside every class: exactly what running it class by class gives, in one call.

    Boxes of different classes are never compared, so no coordinates are shifted and no accuracy is lost.

    Args:
        boxes, scores, iou_threshold: as for `nms`.
        idxs: [N] class of each box, any integer type, any values.

    Returns:
        int64 indices of the kept boxes of all classes, best score first, ties by index.
    """
    require_library()
    return torch.ops.fastnas.batched_nms.default(boxes, scores, idxs, iou_threshold)


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    idxs: Tensor | None = None,
    score_threshold: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`nms` or `batched_nms` of one image or of a batch, with results whose size is known beforehand.

    On the GPU nothing waits for the host and memory is allocated by the shapes alone, so it can be captured in a CUDA graph and
    exported with static shapes.

    Args:
        boxes: [N, 4], or [images, N, 4] for images that do not affect each other. scores: [N] or [images, N].
        iou_threshold: as for `nms`.
        max_output: how many boxes of an image are kept at most, the best ones. 0 or more, and may be above N.
        idxs: [N] or [images, N] class of each box, any integer type; None: one class.
        score_threshold: only boxes with a score above it take part (compared in fp32, in fp64 for fp64 scores; never a NaN).
            None: all.

    Returns:
        indices [max_output] or [images, max_output]: int64, into the N boxes of the image, best score first, -1 after the last
        one; count [] or [images]: int64, how many were kept. Both on the device of the boxes. Not differentiable.

    Raises:
        RuntimeError: wrong shapes, types or devices. FastnasError: the operators are not built.
    """
    require_library()
    return torch.ops.fastnas.nms_padded.default(boxes, scores, iou_threshold, max_output, idxs, score_threshold)


_SIZES_FROM_DATA = torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output


@register_fake("nms", *_SIZES_FROM_DATA)
def _nms_shapes(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return _kept(boxes)


@register_fake("batched_nms", *_SIZES_FROM_DATA)
def _batched_nms_shapes(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return _kept(boxes)


def _kept(boxes: Tensor) -> Tensor:
    most = boxes.size(0) if isinstance(boxes.size(0), int) else None
    kept = torch.library.get_ctx().new_dynamic_size(min=0, max=most)
    return boxes.new_empty(kept, dtype=torch.int64)


@register_fake("nms_padded")
def _nms_padded_shapes(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    idxs: Tensor | None = None,
    score_threshold: float | None = None,
) -> tuple[Tensor, Tensor]:
    before = boxes.shape[:-2]
    return boxes.new_empty((*before, max_output), dtype=torch.int64), boxes.new_empty(before, dtype=torch.int64)
