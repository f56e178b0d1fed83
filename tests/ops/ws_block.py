"""A small model with standardised weights, and what its tests share."""

import torch
from torch import nn

from fastnas import ops

LAST, FIRST = torch.channels_last, torch.contiguous_format


class Block(nn.Module):
    """A residual block of two layers and a scaled, biased convolution: everything that a scope can meet."""

    def __init__(self, channels: int = 8):
        super().__init__()
        self.first = ops.WSConvGN(channels, channels, 3, gn_groups=4, activation="silu")
        self.second = ops.WSConvGN(channels, channels, 1, gn_groups=2)
        self.last = ops.WSConv2d(channels, 4, 3, scaled=True, gamma=1.2)

    def forward(self, x):
        return self.last(self.second(self.first(x), x))


def block(seed: int = 0) -> Block:
    torch.manual_seed(seed)
    return Block()


def image(*shape: int, layout=LAST, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape or (2, 8, 7, 9), generator=generator)
    return values.to(dtype).contiguous(memory_format=layout)


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
