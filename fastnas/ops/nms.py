"""Non-maximum suppression, alone and per class. Kernels: csrc/cpu/nms.cpp, csrc/cuda/nms.cu."""

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
