"""RoIAlign (Mask R-CNN, He et al. 2017) on one feature map or on a pyramid. Kernels: csrc/cpu/roi_align.cpp."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastnas.ops._layout import empty_like_layout, is_channels_last, layout
from fastnas.ops._library import register_fake, require_library


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Averages bilinear samples of `input` in a grid of bins over each box; torchvision's arguments and results.

    Args:
        input: [N, C, H, W] features, fp32, fp64, fp16 or bf16. Channels-last is the fast layout.
        boxes: [K, 5] as (image, x1, y1, x2, y2), or one [L, 4] per image. Their type is independent of the features';
            they are computed in fp32 (fp64 for fp64 features) and get no gradient.
        output_size: bins, (height, width) or one number for both.
        spatial_scale: feature cells per unit of the boxes.
        sampling_ratio: samples per bin and axis; 0 or less: about one per cell.
        aligned: shift by half a cell, so that cell centres are at half-integers (the exact convention).

    Returns:
        [K, C, height, width] in the type and layout of `input`. The backward pass is deterministic.

    Raises:
        RuntimeError: wrong shapes or types, or a box for an image that is not there.
        FastnasError: the operators are not built.
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    if not isinstance(boxes, Tensor):
        boxes = _rows_with_image(boxes)
    return _pool([input], boxes, _Pooling(height, width, (float(spatial_scale),), sampling_ratio, aligned, 1.0, 0.0))


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    output_size: int,
    strides: Sequence[int],
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: int = 224,
    canonical_level: int = 4,
) -> Tensor:
    """RoIAlign of every box on its level of a feature pyramid, in one call.

    A box belongs to level floor(canonical_level + log2(sqrt(area) / canonical_size) + 1e-6), clamped to the levels
    given (Feature Pyramid Networks, Lin et al. 2017, equation 1, as in torchvision's MultiScaleRoIAlign).

    Args:
        features: one [N, C, H_l, W_l] per level, finest first. Levels of another type than the first are converted.
        boxes: [K, 5] as (image, x1, y1, x2, y2) in image pixels.
        output_size: bins per axis.
        strides: image pixels per cell, one power of two per level, each twice the one before.
        sampling_ratio, aligned: as for `roi_align`.
        canonical_size: side, in pixels, of a box that belongs to level `canonical_level` (the level of stride 2^level).

    Returns:
        [K, C, output_size, output_size] in the order of `boxes`, in the type and layout of the first level.

    Raises:
        ValueError: strides that are no pyramid. RuntimeError, FastnasError: as for `roi_align`.
    """
    if any(stride <= 0 or stride & (stride - 1) for stride in strides) or any(
        finer * 2 != coarser for finer, coarser in zip(strides, strides[1:], strict=False)
    ):
        raise ValueError(f"strides: expected powers of two, each twice the one before, got {list(strides)}")
    features = [level if level.dtype == features[0].dtype else level.to(features[0].dtype) for level in features]
    scales = tuple(1.0 / stride for stride in strides)
    pooling = _Pooling(
        output_size, output_size, scales, sampling_ratio, aligned, float(canonical_size), float(canonical_level)
    )
    return _pool(features, boxes, pooling)


class _Pooling(NamedTuple):
    """Everything of a call that is not a tensor, in the order of the operator's arguments."""

    height: int
    width: int
    scales: tuple[float, ...]
    sampling_ratio: int
    aligned: bool
    canonical_size: float
    canonical_level: float


def _rows_with_image(boxes: Sequence[Tensor]) -> Tensor:
    rows = torch.cat(list(boxes))
    counts = torch.tensor([len(of_image) for of_image in boxes], device=rows.device)
    # fp16 and bf16 cannot count many images; the coordinates do not lose anything in fp32.
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    images = torch.repeat_interleave(torch.arange(len(boxes), device=rows.device), counts).to(rows.dtype)
    return torch.cat([images[:, None], rows], dim=1)


def _pool(features: list[Tensor], boxes: Tensor, pooling: _Pooling) -> Tensor:
    require_library()
    boxes = boxes.detach()
    # The autograd function stands outside the operator, so inference does not pay for it.
    if torch.is_grad_enabled() and any(level.requires_grad for level in features):
        return _RoIAlign.apply(boxes, pooling, *features)
    return torch.ops.fastnas.roi_align.default(features, boxes, *pooling)


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, boxes: Tensor, pooling: _Pooling, *features: Tensor) -> Tensor:
        ctx.save_for_backward(boxes)
        ctx.pooling = pooling
        ctx.batch = features[0].size(0)
        ctx.heights = [level.size(2) for level in features]
        ctx.widths = [level.size(3) for level in features]
        ctx.channels_last = [is_channels_last(level) for level in features]
        return torch.ops.fastnas.roi_align.default(list(features), boxes, *pooling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (boxes,) = ctx.saved_tensors
        _, _, *rest = ctx.pooling
        gradients = torch.ops.fastnas.roi_align_backward.default(
            grad, boxes, ctx.batch, ctx.heights, ctx.widths, ctx.channels_last, *rest, torch.are_deterministic_algorithms_enabled()
        )
        return None, None, *gradients


@register_fake("roi_align")
def _roi_align_shapes(
    features: list[Tensor],
    boxes: Tensor,
    pooled_height: int,
    pooled_width: int,
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_size: float,
    canonical_level: float,
) -> Tensor:
    like = features[0]
    size = (boxes.size(0), like.size(1), pooled_height, pooled_width)
    return empty_like_layout(like, size)


@register_fake("roi_align_backward")
def _roi_align_backward_shapes(
    grad: Tensor,
    boxes: Tensor,
    batch: int,
    heights: list[int],
    widths: list[int],
    channels_last: list[bool],
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_size: float,
    canonical_level: float,
    deterministic: bool,
) -> list[Tensor]:
    return [
        torch.empty((batch, grad.size(1), h, w), dtype=grad.dtype, device=grad.device, memory_format=layout(last))
        for h, w, last in zip(heights, widths, channels_last, strict=True)
    ]
