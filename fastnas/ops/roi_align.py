"""RoIAlign (Mask R-CNN, He et al. 2017) on one feature map or on a pyramid. Kernels: csrc/cpu/roi_align.cpp,
csrc/cuda/roi_align.cu.

On the GPU everything is queued without waiting for the device, so calls can be captured in a CUDA graph. The price: a box for an
image that is not there cannot be reported there; it pools zeros and gets no gradient (on the CPU it is an error).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastnas.errors import InputError
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
        input: [N, C, H, W] features, fp32, fp16 or bf16, on the CPU also fp64. Channels-last is the fast layout.
        boxes: [K, 5] as (image, x1, y1, x2, y2), or one [L, 4] per image. Their type is independent of the features';
            they are computed in fp32 (fp64 for fp64 features) and get no gradient.
        output_size: bins, (height, width) or one number for both.
        spatial_scale: feature cells per unit of the boxes.
        sampling_ratio: samples per bin and axis; 0 or less: about one per cell.
        aligned: shift by half a cell, so that cell centres are at half-integers (the exact convention).

    Returns:
        [K, C, height, width] in the type and layout of `input`. The gradient is deterministic on the CPU, and on the GPU
        under `torch.use_deterministic_algorithms(True)`; else the GPU adds in any order, with fp32 atomics.

    Raises:
        RuntimeError: wrong shapes or types, or (CPU) a box for an image that is not there.
        InputError: a list of boxes that is not one [L, 4] per image, sizes that are not two. FastnasError: no operators.
    """
    height, width = _both_axes(output_size)
    if not isinstance(boxes, Tensor):
        boxes = _rows_with_image(boxes, input)
    return _pool([input], boxes, _Pooling(height, width, (float(spatial_scale),), sampling_ratio, aligned, 1.0, 0.0))


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    output_size: int | Sequence[int],
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
        output_size: bins, (height, width) or one number for both.
        strides: image pixels per cell, one power of two per level, each twice the one before.
        sampling_ratio, aligned: as for `roi_align`.
        canonical_size: side, in pixels, of a box that belongs to level `canonical_level` (the level of stride 2^level).

    Returns:
        [K, C, height, width] in the order of `boxes`, in the type and layout of the first level.

    Raises:
        InputError: strides that are no pyramid, a canonical size of 0 or less. RuntimeError, FastnasError: as for `roi_align`.
    """
    if any(not isinstance(stride, int) or stride <= 0 or stride & (stride - 1) for stride in strides) or any(
        finer * 2 != coarser for finer, coarser in zip(strides, strides[1:], strict=False)
    ):
        raise InputError(f"strides: expected powers of two, each twice the one before, got {list(strides)}")
    if not canonical_size > 0:
        raise InputError(f"canonical_size: expected a positive number of pixels, got {canonical_size}")
    height, width = _both_axes(output_size)
    features = [level if level.dtype == features[0].dtype else level.to(features[0].dtype) for level in features]
    scales = tuple(1.0 / stride for stride in strides)
    pooling = _Pooling(height, width, scales, sampling_ratio, aligned, float(canonical_size), float(canonical_level))
    return _pool(features, boxes, pooling)


class RoIAlign(nn.Module):
    """`roi_align` as a module, with the constructor and the call of torchvision's."""

    def __init__(
        self, output_size: int | Sequence[int], spatial_scale: float, sampling_ratio: int, aligned: bool = False
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


class MultiscaleRoIAlign(nn.Module):
    """`multiscale_roi_align` as a module: call it with the features, finest first, and [K, 5] boxes."""

    def __init__(
        self,
        output_size: int | Sequence[int],
        strides: Sequence[int],
        sampling_ratio: int = 2,
        aligned: bool = False,
        canonical_size: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.strides = tuple(strides)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        return multiscale_roi_align(
            features,
            boxes,
            self.output_size,
            self.strides,
            self.sampling_ratio,
            self.aligned,
            self.canonical_size,
            self.canonical_level,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, strides={self.strides}, sampling_ratio={self.sampling_ratio}, "
            f"aligned={self.aligned}, canonical_size={self.canonical_size}, canonical_level={self.canonical_level}"
        )


class _Pooling(NamedTuple):
    """Everything of a call that is not a tensor, in the order of the operator's arguments."""

    height: int
    width: int
    scales: tuple[float, ...]
    sampling_ratio: int
    aligned: bool
    canonical_size: float
    canonical_level: float


def _both_axes(output_size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(output_size, int):
        return output_size, output_size
    if not isinstance(output_size, Sequence) or len(output_size) != 2:
        raise InputError(f"output_size: expected one number or (height, width), got {output_size!r}")
    return output_size[0], output_size[1]


def _rows_with_image(boxes: Sequence[Tensor], features: Tensor) -> Tensor:
    if any(of_image.dim() != 2 or of_image.size(1) != 4 for of_image in boxes):
        raise InputError(f"boxes: expected one [L, 4] per image, got {[list(of_image.shape) for of_image in boxes]}")
    if not boxes:
        return features.new_empty((0, 5), dtype=torch.float32)
    # fp16 and bf16 cannot count many images; the coordinates do not lose anything in fp32. Padding needs no tensor of numbers
    # from the host, for which a GPU would have to be waited for.
    wide = torch.promote_types(boxes[0].dtype, torch.float32)
    return torch.cat([nn.functional.pad(of_image.to(wide), (1, 0), value=float(i)) for i, of_image in enumerate(boxes)])


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
