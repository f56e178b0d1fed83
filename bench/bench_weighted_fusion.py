"""A BiFPN node (resampling, weighting, SiLU) against the effdet package's own modules, eager and compiled.

Shapes are those of EfficientDet-D0 at 512 x 512 with a batch of 8: the finest level (64 x 64) and a coarse one (16 x 16).
`eager` is effdet's FpnCombine with "fastattn" weights and TensorFlow padding, followed by its SiLU; `compiled` is the same
module under torch.compile. The layout is that of all inputs. Where effdet is not installed, the same steps as written in
bench/_peers.py stand in for it.
"""

from collections.abc import Callable, Iterator

import torch
from _bench import Case, main
from _peers import weighted_fusion as eager_fusion
from torch import Tensor, nn

from fastnas import ops

try:
    from effdet.efficientdet import FpnCombine
except ImportError:
    FpnCombine = None

IMAGES, CHANNELS = 8, 64
GOALS = {"cpu": {"eager": 15.0, "compiled": 3.0}, "cuda": {"eager": 8.0, "compiled": 1.2}}
LAYOUTS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NODES = {  # sides of the inputs as multiples of the node's
    "2-input up": (1, 0.5),
    "2-input down": (1, 2),
    "3-input": (1, 1, 2),
}


class EagerNode(nn.Module):
    def __init__(self, inputs: int, side: int) -> None:
        super().__init__()
        self.edge_weights, self.side = nn.Parameter(torch.ones(inputs)), side

    def forward(self, inputs: list[Tensor]) -> Tensor:
        return eager_fusion(inputs, self.edge_weights, (self.side, self.side), "fast", "silu")


def effdet_node(sides: list[int], side: int, device: torch.device) -> nn.Module:
    if FpnCombine is None:
        return EagerNode(len(sides), side).to(device)
    known = [{"num_chs": CHANNELS, "size": (s, s)} for s in sides]
    combine = FpnCombine(known, CHANNELS, tuple(range(len(sides))), (side, side), pad_type="same", weight_method="fastattn")
    return nn.Sequential(combine, nn.SiLU(inplace=True)).to(device)


def both(node: Callable, inputs: list[Tensor], weights: list[Tensor], grad: Tensor) -> Callable:
    return lambda: torch.autograd.grad(node(inputs), [*inputs, *weights], grad)


def forward(node: Callable, inputs: list[Tensor]) -> Callable:
    def run() -> Tensor:
        with torch.no_grad():
            return node(inputs)

    return run


def error_of(ours: nn.Module, theirs: nn.Module, inputs: list[Tensor], direction: str) -> float:
    """Largest difference to effdet's node in float64, over the output or over all gradients."""
    wide = [level.detach().double().requires_grad_() for level in inputs]
    theirs = theirs.double()
    out, expected = ours(inputs), theirs(wide)
    results = [(out, expected)]
    if direction == "both":
        mine = torch.autograd.grad(out, inputs, torch.ones_like(out))
        results += zip(mine, torch.autograd.grad(expected, wide, torch.ones_like(expected)), strict=True)
    return max((a.double() - b).abs().max().item() for a, b in results)


def cases(device: torch.device) -> Iterator[Case]:
    for dtype_name, dtype in DTYPES.items():
        for layout_name, layout in LAYOUTS.items():
            for side in (64, 16):
                for name, factors in NODES.items():
                    sides = [int(side * factor) for factor in factors]
                    generator = torch.Generator().manual_seed(0)
                    inputs = [
                        torch.randn(IMAGES, CHANNELS, s, s, generator=generator)
                        .to(device, dtype)
                        .contiguous(memory_format=layout)
                        .requires_grad_()
                        for s in sides
                    ]
                    numbers = [level.numel() for level in inputs]
                    node_numbers = IMAGES * CHANNELS * side * side
                    size = torch.finfo(dtype).bits // 8
                    once = (sum(numbers) + node_numbers) * size
                    floors = {"forward": once, "both": 2 * once + sum(numbers) * size}  # backward reads both, writes gradients
                    ours = ops.WeightedFusion(len(sides), activation="silu").to(device)
                    theirs = effdet_node(sides, side, device)
                    compiled = torch.compile(effdet_node(sides, side, device))
                    grad = torch.randn(IMAGES, CHANNELS, side, side, generator=generator).to(device, dtype)
                    grad = grad.contiguous(memory_format=layout)
                    nodes = {"fastnas": ours, "eager": theirs, "compiled": compiled}
                    for direction in ("forward", "both"):
                        candidates = {
                            who: forward(node, inputs)
                            if direction == "forward"
                            else both(node, inputs, list(node.parameters()), grad)
                            for who, node in nodes.items()
                        }
                        yield Case(
                            operator="weighted_fusion",
                            shape=f"{name} {IMAGES}x{CHANNELS}x{side}x{side}",
                            dtype=dtype_name,
                            layout=layout_name,
                            direction=direction,
                            candidates=candidates,
                            goal=GOALS[device.type],
                            floor_bytes=floors[direction],
                            max_error=error_of(ours, effdet_node(sides, side, device), inputs, direction),
                        )


if __name__ == "__main__":
    main("weighted_fusion", cases)
