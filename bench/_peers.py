"""What a model would run without fastnas.ops: the same operators from torchvision, or written in eager PyTorch as others do.

`Swap` puts functions in place of operators wherever the package uses them; `Replay` makes operators cost nothing.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.ops import poolers

from fastnas import ops

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "silu": F.silu}
IN_PLACE = {"none": lambda x: x} | {
    name: partial(getattr(F, name), inplace=True) for name in ("relu", "relu6", "silu")
}


def multiscale_roi_align(
    features, boxes, output_size, strides, sampling_ratio=2, aligned=False, canonical_size=224, canonical_level=4
) -> Tensor:
    """torchvision's MultiScaleRoIAlign, given the rows (image, x1, y1, x2, y2) that it would put together itself."""
    assert not aligned
    first, last = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    mapper = poolers.initLevelMapper(first, last, canonical_scale=canonical_size, canonical_level=canonical_level)
    size, scales = (output_size, output_size), [1 / stride for stride in strides]
    own = poolers._convert_to_roi_format
    poolers._convert_to_roi_format = lambda _: boxes
    try:
        return poolers._multiscale_roi_align(list(features), [boxes[:, 1:]], size, sampling_ratio, scales, mapper)
    finally:
        poolers._convert_to_roi_format = own


def group_norm_act(input, groups, weight=None, bias=None, eps=1e-5, activation="none", residual=None) -> Tensor:
    out = F.group_norm(input, groups, weight, bias, eps)
    return ACTIVATIONS[activation](out if residual is None else out + residual)


def batch_norm_act(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, activation="none",
    residual=None, inplace=False,
) -> Tensor:  # fmt: skip
    """In place behind the norm, as torchvision's and timm's blocks do it."""
    out = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return IN_PLACE[activation](out if residual is None else out.add_(residual))


def weighted_fusion(inputs, weights, size=None, method="fast", activation="none", eps=1e-4, padding="same") -> Tensor:
    """As efficientdet-pytorch's FpnCombine: resize, weigh one by one, stack, sum."""
    size = size or inputs[0].shape[-2:]
    maps = [_resized(x, tuple(size), padding) for x in inputs]
    if method == "softmax":
        shares = torch.softmax(weights, 0)
        maps = [x * share.to(x.dtype) for x, share in zip(maps, shares, strict=True)]
    elif method == "fast":
        positive = F.relu(weights)
        total = positive.sum()
        maps = [(x * part.to(x.dtype)) / (total + eps).to(x.dtype) for x, part in zip(maps, positive, strict=True)]
    return ACTIVATIONS[activation](torch.stack(maps, -1).sum(-1))


def _resized(x: Tensor, size: tuple[int, int], padding: str) -> Tensor:
    height, width = x.shape[-2:]
    if (height, width) == size:
        return x
    if height <= size[0]:
        return F.interpolate(x, size=size, mode="nearest")
    if padding == "symmetric":
        return F.max_pool2d(x, 3, stride=2, padding=1)
    rows, columns = (max(0, (target - 1) * 2 + 3 - source) for target, source in zip(size, (height, width), strict=True))
    x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), value=-torch.inf)
    return F.max_pool2d(x, 3, stride=2)


def depthwise_conv2d(input, weight, bias=None, stride=1, padding=0) -> Tensor:
    """torch's convolution; padding as TensorFlow's SAME by a copy with borders, as timm and effdet do it."""
    if padding == "same":
        rows, columns = (
            max((-(-side // step) - 1) * step + kernel - side, 0)
            for side, kernel, step in zip(input.shape[2:], weight.shape[2:], stride, strict=True)
        )
        if rows % 2 or columns % 2:
            input = F.pad(input, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            rows = columns = 0
        padding = rows // 2, columns // 2
    return F.conv2d(input, weight, bias, stride, padding, groups=input.shape[1])


PEERS: dict[str, Callable] = {
    "depthwise_conv2d": depthwise_conv2d,
    "nms": torchvision.ops.nms,
    "batched_nms": torchvision.ops.batched_nms,
    "roi_align": torchvision.ops.roi_align,
    "multiscale_roi_align": multiscale_roi_align,
    "batch_norm_act": batch_norm_act,
    "group_norm_act": group_norm_act,
    "weighted_fusion": weighted_fusion,
}


class Swap:
    """Context: `replacements[name]` in place of `fastnas.ops.name` in every module of the package that is loaded by now.

    The places are looked up once, so that entering costs nothing worth timing.
    """

    def __init__(self, replacements: Mapping[str, Callable]) -> None:
        own = {id(getattr(ops, name)): name for name in replacements}
        self.places = [
            (module, attribute, value, replacements[own[id(value)]])
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] == "fastnas" and module is not None
            for attribute, value in list(vars(module).items())
            if id(value) in own
        ]

    def __enter__(self) -> None:
        for module, attribute, _, new in self.places:
            setattr(module, attribute, new)

    def __exit__(self, *_: Any) -> None:
        for module, attribute, value, _ in self.places:
            setattr(module, attribute, value)


def available() -> dict[str, Callable]:
    """Our operators that have a peer here."""
    return {name: getattr(ops, name) for name in PEERS if hasattr(ops, name)}


class Replay:
    """Operators that cost nothing: the results of one recorded run, handed out in the order of the calls.

    Gradients of the inputs are constants too: their values do not matter to the time, their shapes and layouts do.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        """run: one step, always with the same calls."""
        self.results: list[tuple[Any, list[Tensor]]] = []
        self.calls: Counter[str] = Counter()
        own = available()
        with Swap({name: self._recorder(name, operator) for name, operator in own.items()}):
            run()
        self.swap = Swap(dict.fromkeys(own, self._next))
        self.position = 0

    def __call__(self, run: Callable[[], Any]) -> Any:
        """`run` once more, on recorded results."""
        self.position = 0
        with self.swap:
            return run()

    def _recorder(self, name: str, operator: Callable) -> Callable:
        def record(*arguments, **options):
            result = operator(*arguments, **options)
            self.calls[name] += 1
            gradients = [torch.randn_like(x).mul_(1e-4) if x.requires_grad else None for x in tensors((arguments, options))]
            self.results.append((result.detach(), gradients))
            return result

        return record

    def _next(self, *arguments, **options) -> Tensor:
        result, gradients = self.results[self.position]
        self.position += 1
        if not torch.is_grad_enabled() or not any(gradient is not None for gradient in gradients):
            return result
        return _Constant.apply(result, gradients, *tensors((arguments, options)))


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested sequences and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for part in value for tensor in tensors(part)]


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.gradients
