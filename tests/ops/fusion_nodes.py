"""Inputs of BiFPN nodes for the tests of weighted_fusion."""

import torch

LAYOUTS = [torch.contiguous_format, torch.channels_last]

# Sizes of the inputs of a node of 12 x 8: what a BiFPN has.
UP, DOWN, THREE = [(12, 8), (6, 4)], [(12, 8), (24, 16)], [(12, 8), (12, 8), (24, 16)]


def maps(sizes, channels=5, images=2, layout=torch.contiguous_format, dtype=torch.float64, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(images, channels, *size, generator=generator, dtype=torch.float64) for size in sizes]
    return [m.to(device, dtype).contiguous(memory_format=layout).requires_grad_() for m in made]


def some_weights(count, dtype=torch.float64, device="cpu"):
    return torch.tensor([0.7, 1.3, 0.4][:count], dtype=dtype, device=device).requires_grad_()


def copies(tensors, dtype=None):
    return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]


def gradients(out, tensors, seed=9):
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.device, out.dtype)
    return torch.autograd.grad(out, tensors, grad)
