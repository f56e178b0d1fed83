"""group_norm_act against torch's group_norm and activation, eager and compiled, both layouts.

Rows are what ours does in that layout; peers run in both layouts, so that the strongest one is the best that a user could choose
("nhwc" is channels-last). The eager activation works in place, as models write it; compiled and fastnas hold the parameters in
fp32, eager in the type of the map (it accepts nothing else). Both sides allocate their results; fresh memory costs both the same.
"backward" rows run the gradients of a graph that is kept, "both" rows build it anew each time.
"""

from collections.abc import Callable, Iterator

import torch
import torch._functorch.config
import torch.nn.functional as F
from _bench import Case, main

from fastnas.ops import group_norm_act

torch._functorch.config.donated_buffer = False  # a compiled graph that is kept may not give its memory away

GROUPS = 32
LAYOUTS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ACTIVATIONS: dict[str, Callable] = {
    "relu": lambda values: F.relu(values, inplace=True),
    "silu": lambda values: F.silu(values, inplace=True),
}
# images, channels, height, width, residual; the CPU gets fewer images
SHAPES = {
    "cpu": [(2, 256, 50, 76, False), (2, 256, 100, 152, False), (4, 256, 56, 56, False), (2, 64, 200, 304, False),
            (4, 256, 56, 56, True)],
    "cuda": [(2, 256, 50, 76, False), (2, 256, 100, 152, False), (32, 256, 56, 56, False), (2, 64, 200, 304, False),
             (2, 256, 200, 304, False), (32, 256, 56, 56, True)],
}  # fmt: skip
GOALS = {"eager nhwc": 2.5, "eager nchw": 2.5, "compiled nhwc": 1.3, "compiled nchw": 1.3}


class Work:
    """One map in one layout with its parameters, and the passes over it."""

    def __init__(self, shape: tuple[int, ...], residual: bool, dtype: torch.dtype, layout: str, device: torch.device):
        def values(seed: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed)
            wide = torch.randn(shape, generator=generator).to(device, dtype)
            return wide.contiguous(memory_format=LAYOUTS[layout])

        self.x, self.gradient = values(0).requires_grad_(), values(1)
        self.residual = values(2).requires_grad_() if residual else None
        generator = torch.Generator().manual_seed(3)
        self.weight, self.bias = (
            torch.randn(shape[1], generator=generator).to(device).requires_grad_() for _ in range(2)
        )

    def leaves(self, weight: torch.Tensor, bias: torch.Tensor) -> list[torch.Tensor]:
        return [self.x, weight, bias] + ([] if self.residual is None else [self.residual])

    def passes(self, norm: Callable, params: torch.dtype) -> dict[str, Callable]:
        weight, bias = (p.detach().to(params).requires_grad_() for p in (self.weight, self.bias))

        def run():
            return norm(self.x, weight, bias, self.residual)

        kept: list[torch.Tensor] = []

        def forward():
            with torch.no_grad():
                return run()

        def backward():
            if not kept:
                kept.append(run())
            return torch.autograd.grad(kept[0], self.leaves(weight, bias), self.gradient, retain_graph=True)

        def both():
            return torch.autograd.grad(run(), self.leaves(weight, bias), self.gradient)

        return {"forward": forward, "backward": backward, "both": both}


def eager_norm(activation: str) -> Callable:
    def run(x, weight, bias, residual):
        values = F.group_norm(x, GROUPS, weight, bias)
        return ACTIVATIONS[activation](values if residual is None else values.add_(residual))

    return run


def compiled_norm(activation: str) -> Callable:
    def run(x, weight, bias, residual):
        values = F.group_norm(x, GROUPS, weight.to(x.dtype), bias.to(x.dtype))
        values = values if residual is None else values + residual
        return F.relu(values) if activation == "relu" else F.silu(values)

    return torch.compile(run)


def our_norm(activation: str) -> Callable:
    def run(x, weight, bias, residual):
        return group_norm_act(x, GROUPS, weight, bias, 1e-5, activation, residual)

    return run


def largest_error(work: Work, out: torch.Tensor, activation: str) -> float:
    values = F.group_norm(work.x.detach().double(), GROUPS, work.weight.double(), work.bias.double())
    if work.residual is not None:
        values = values + work.residual.double()
    return float((out.double() - ACTIVATIONS[activation](values)).abs().max())


def cases(device: torch.device) -> Iterator[Case]:
    for *shape, residual in SHAPES[device.type]:
        for dtype_name, dtype in DTYPES.items():
            for activation in ACTIVATIONS:
                works = {layout: Work(tuple(shape), residual, dtype, layout, device) for layout in LAYOUTS}
                peers = {}
                for layout, work in works.items():
                    peers[f"eager {layout}"] = work.passes(eager_norm(activation), dtype)
                    peers[f"compiled {layout}"] = work.passes(compiled_norm(activation), torch.float32)
                for layout, work in works.items():
                    ours = work.passes(our_norm(activation), torch.float32)
                    error = largest_error(work, ours["forward"](), activation)
                    map_bytes = work.x.numel() * work.x.element_size()
                    maps = {"forward": 2 + residual, "backward": 3 + 2 * residual, "both": 5 + 3 * residual}
                    title = f"{'x'.join(map(str, shape))} {activation}{' residual' if residual else ''}"
                    for direction, run in ours.items():
                        yield Case(
                            "group_norm_act", title, dtype_name, layout, direction,
                            {"fastnas": run, **{name: passes[direction] for name, passes in peers.items()}},
                            goal=GOALS, floor_bytes=maps[direction] * map_bytes, max_error=error,
                            goal_percent_of_copy=80 if device.type == "cuda" and direction == "forward" else None,
                        )  # fmt: skip


if __name__ == "__main__":
    main("group_norm", cases)
