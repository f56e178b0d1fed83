"""A layer of convolution with standardised weights, GroupNorm and ReLU: WSConvGN against timm's StdConv2d and GroupNormAct.

Forward + backward as in training, with fp32 weights; bf16 under autocast. The convolutions themselves are the library's in
all candidates: `fastnas bound` is what the bare convolution takes, so no layer could be faster. `fastnas scope` makes the
standardised weight inside `with standardized(layer):`, from which a single layer gains nothing.
"""

from collections.abc import Iterator

import torch
from _bench import Case, main
from timm.layers import GroupNormAct, StdConv2d
from torch import Tensor, nn

from fastnas import ops

CASES = {  # images, channels, height, width
    "cpu": [(2, 256, 25, 38), (4, 64, 56, 56)],
    "cuda": [(2, 256, 100, 152), (2, 256, 50, 76), (32, 64, 56, 56), (32, 512, 7, 7)],
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def training_step(layer: nn.Module, x: Tensor, grad: Tensor, dtype: torch.dtype, scope: bool = False):
    parameters = list(layer.parameters())

    def run():
        for parameter in parameters:
            parameter.grad = None
        x.grad = None
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            if scope:
                with ops.standardized(layer):
                    layer(x).backward(grad)
            else:
                layer(x).backward(grad)
        return [x.grad, *(parameter.grad for parameter in parameters)]

    return run


def error(ours: list[Tensor], layer: nn.Module, x: Tensor, grad: Tensor) -> float:
    """The largest relative error (of norms) of any gradient against float64."""
    exact = timm_twin(layer).double().cpu()
    wide = x.detach().double().cpu().requires_grad_()
    exact(wide).backward(grad.double().cpu())
    wanted = [wide.grad, *(parameter.grad for parameter in exact.parameters())]
    return max(((a.double().cpu() - b).norm() / b.norm()).item() for a, b in zip(ours, wanted, strict=True))


def timm_twin(layer: ops.WSConvGN) -> nn.Sequential:
    """timm's layer with the same parameters."""
    conv, norm = layer.conv, layer.norm
    theirs = nn.Sequential(
        StdConv2d(conv.in_channels, conv.out_channels, conv.kernel_size[0]),
        GroupNormAct(norm.num_channels, norm.num_groups, act_layer=nn.ReLU),
    )
    theirs[0].load_state_dict(conv.state_dict())
    theirs[1].load_state_dict(norm.state_dict())
    return theirs.to(conv.weight.device)


def cases(device: torch.device) -> Iterator[Case]:
    for images, channels, height, width in CASES[device.type]:
        for name, dtype in DTYPES.items():
            for layout, memory_format in (("nhwc", torch.channels_last), ("nchw", torch.contiguous_format)):
                layer = ops.WSConvGN(channels, channels, 3).to(device)
                theirs = timm_twin(layer)
                alone = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(device)
                x = torch.randn(images, channels, height, width, device=device, dtype=dtype)
                x = x.contiguous(memory_format=memory_format).requires_grad_()
                grad = torch.randn_like(x)
                compiled = torch.compile(timm_twin(layer), fullgraph=True)
                candidates = {
                    "fastnas": training_step(layer, x, grad, dtype),
                    "fastnas scope": training_step(layer, x, grad, dtype, scope=True),
                    "eager": training_step(theirs, x, grad, dtype),
                    "compiled": training_step(compiled, x, grad, dtype),
                    "fastnas bound": training_step(alone, x, grad, dtype),
                }
                yield Case(
                    "ws_conv_gn", f"{images}x{channels}x{height}x{width} 3x3", name, layout, "both", candidates,
                    max_error=error(candidates["fastnas"](), layer, x, grad),
                )  # fmt: skip


if __name__ == "__main__":
    main("ws_conv", cases)
