"""Depthwise convolution against ATen's, in both layouts and compiled, on the maps of EfficientDet-D0 at 512 x 512.

Rows are channels-last, two images. "nhwc" and "nchw" are `torch.nn.functional.conv2d` in that layout; "compiled" is the same under
torch.compile, channels-last. Borders are TensorFlow's SAME as D0 has them: at stride 2 the peers copy the map with its border
first, as timm and effdet do. Peers get the weight in the type of the map, ours holds it in fp32. "backward" rows run the gradients
of map and weight on a graph that is kept. At stride 1 our forward pass is ATen's too; on a GPU all of ours is cuDNN's.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch._functorch.config
from _bench import Case, main
from _peers import depthwise_conv2d as eager
from torch import Tensor

from fastnas.ops import depthwise_conv2d

torch._functorch.config.donated_buffer = False  # a compiled graph that is kept may not give its memory away

IMAGES = 2
GOALS = {"forward": None, "backward": 1.5}
LAYOUTS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = [  # channels, side, kernel, stride
    (32, 256, 3, 1), (96, 256, 3, 2), (144, 128, 3, 1), (144, 128, 5, 2), (240, 64, 5, 1), (240, 64, 3, 2), (480, 32, 3, 1),
    (480, 32, 5, 1), (672, 32, 5, 1), (672, 32, 5, 2), (1152, 16, 5, 1), (1152, 16, 3, 1), (64, 64, 3, 1), (64, 8, 3, 1),
]  # fmt: skip


def passes(conv: Callable, x: Tensor, weight: Tensor, stride: int, gradient: Tensor) -> dict[str, Callable]:
    x, weight = x.detach().clone().requires_grad_(), weight.detach().requires_grad_()  # none finds its map in a cache
    kept: list[Tensor] = []

    def run() -> Tensor:
        return conv(x, weight, None, (stride, stride), "same")

    def forward() -> Tensor:
        with torch.no_grad():
            return run()

    def backward() -> tuple[Tensor, ...]:
        if not kept:
            kept.append(run())
        return torch.autograd.grad(kept[0], (x, weight), gradient, retain_graph=True)

    return {"forward": forward, "backward": backward}


def largest_error(x: Tensor, weight: Tensor, stride: int, gradient: Tensor, results: dict[str, Callable]) -> dict[str, float]:
    """Of the map, and of the gradients as shares of the largest."""
    exact = passes(eager, x.double(), weight.double(), stride, gradient.double())
    return {
        "forward": float((results["forward"]() - exact["forward"]()).abs().max()),
        "backward": max(
            float((own - other).abs().max() / other.abs().max())
            for own, other in zip(results["backward"](), exact["backward"](), strict=True)
        ),
    }


def build(
    channels: int, side: int, kernel: int, stride: int, dtype: torch.dtype, direction: str, device: torch.device
) -> dict[str, Any]:
    """What a row needs beyond its title."""
    generator = torch.Generator().manual_seed(0)
    small = -(-side // stride)
    x = torch.randn(IMAGES, channels, side, side, generator=generator).to(device, dtype)
    gradient = torch.randn(IMAGES, channels, small, small, generator=generator).to(device, dtype)
    weight = torch.randn(channels, 1, kernel, kernel, generator=generator).to(device)
    in_layout = {
        name: (x.contiguous(memory_format=layout), gradient.contiguous(memory_format=layout))
        for name, layout in LAYOUTS.items()
    }
    x, gradient = in_layout["nhwc"]
    ours = passes(depthwise_conv2d, x, weight, stride, gradient)
    candidates = {"fastnas": ours, "compiled": passes(torch.compile(eager), x, weight.to(dtype), stride, gradient)}
    for name, (own, grad) in in_layout.items():
        candidates[name] = passes(eager, own, weight.to(dtype), stride, grad)
    large = 1 if direction == "forward" else 2  # maps of the input's size: read, and written by the backward pass
    return {
        "candidates": {name: runs[direction] for name, runs in candidates.items()},
        "max_error": largest_error(x, weight, stride, gradient, ours)[direction],
        "floor_bytes": (large * x.numel() + gradient.numel()) * x.element_size(),
    }


def cases(device: torch.device) -> Iterator[Case]:
    for channels, side, kernel, stride in SHAPES if device.type == "cpu" else SHAPES[:1]:  # on a GPU ours is torch's
        for dtype_name, dtype in DTYPES.items():
            for direction, goal in GOALS.items():
                yield Case(
                    "depthwise_conv2d", f"{IMAGES}x{channels}x{side}x{side} {kernel}x{kernel}/{stride}", dtype_name, "nhwc",
                    direction, goal=goal if device.type == "cpu" else None,
                    build=partial(build, channels, side, kernel, stride, dtype, direction, device),
                )  # fmt: skip


if __name__ == "__main__":
    main("depthwise_conv", cases)
