"""Convolution with standardised weights, followed by GroupNorm and activation (Qiao et al. 2019, arXiv 1903.10520; BiT,
Kolesnikov et al. 2020). The convolution is the library's; what is around it is `standardize_weight` and `group_norm_act`.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.ops._autocast import cast, convolution_type
from fastnas.ops._layout import is_channels_last
from fastnas.ops.group_norm import GroupNormAct, group_norm_act
from fastnas.ops.standardize_weight import standardize_weight
from fastnas.ops.standardized import Standardizing


def ws_conv_gn(
    input: Tensor,
    weight: Tensor,
    gn_groups: int,
    gn_weight: Tensor | None = None,
    gn_bias: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    gn_eps: float = 1e-5,
    activation: str = "none",
    residual: Tensor | None = None,
    gain: Tensor | None = None,
    scale: float = 1.0,
    eps: float | None = None,
    convention: str = "timm",
) -> Tensor:
    """activation(group_norm(conv2d(input, standardised weight) + bias) + residual).

    Args:
        input: [N, I, H, W]; channels-last is the fast layout. Under autocast it is converted as for any convolution.
        weight: [O, I / groups, kh, kw] in any type, usually fp32; its standardised form is cast to the input's type.
        gn_groups, gn_weight, gn_bias, gn_eps: of the GroupNorm over the O channels; [O], [O].
        bias, stride, padding, dilation, groups: of the convolution, as for `torch.nn.functional.conv2d`.
        activation: "none", "relu" or "silu".
        residual: [N, O, H', W'], added before the activation.
        gain, scale, eps, convention: of the standardisation, as for `standardize_weight`.

    Returns:
        [N, O, H', W'] in the type of the convolution, channels-last where the input is.

    Raises:
        as `standardize_weight`, `torch.nn.functional.conv2d` and `group_norm_act`.
    """
    dtype = convolution_type(input)
    ready = standardize_weight(
        weight, gain, eps, convention, dtype, scale=scale, channels_last=input.dim() == 4 and is_channels_last(input)
    )
    features = F.conv2d(input.to(dtype), ready, cast(bias, dtype), stride, padding, dilation, groups)
    return group_norm_act(features, gn_groups, gn_weight, gn_bias, gn_eps, activation, residual)


class WSConv2d(Standardizing, nn.Conv2d):
    """`nn.Conv2d` with standardised weights; takes its arguments and loads its state dict.

    With `scaled` it is timm's ScaledStdConv2d: a learned `gain` [O, 1, 1, 1] beside weight and bias, and the constant
    gamma / sqrt(I / groups * kh * kw). Without it is timm's StdConv2d (or, by `convention`, the paper's).
    Inside `with standardized(model):` the standardised weights of all layers are made at once and shared by all passes.

    eps, convention: as for `standardize_weight`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        eps: float | None = None,
        convention: str = "timm",
        scaled: bool = False,
        gamma: float = 1.0,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.eps, self.convention = eps, convention
        self.scale = gamma * self.weight[0].numel() ** -0.5 if scaled else 1.0
        gain = nn.Parameter(torch.ones(out_channels, 1, 1, 1, device=device, dtype=dtype)) if scaled else None
        self.register_parameter("gain", gain)

    def forward(self, input: Tensor) -> Tensor:
        dtype = convolution_type(input)
        weight = self.standardized_weight(dtype, input.dim() == 4 and is_channels_last(input))
        return self._conv_forward(input.to(dtype), weight, cast(self.bias, dtype))

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """A plain convolution with today's standardised weight in the type and layout of the weight, for inference."""
        plain = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation, self.groups,
            self.bias is not None, self.padding_mode, self.weight.device, self.weight.dtype,
        )  # fmt: skip
        weight = standardize_weight(self.weight, self.gain, self.eps, self.convention, scale=self.scale)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)
        return plain.train(self.training)

    def extra_repr(self) -> str:
        scaled = "" if self.gain is None else f", scaled, scale={self.scale:.4g}"
        return f"{super().extra_repr()}, convention={self.convention!r}{scaled}"


class WSConvGN(nn.Module):
    """`ws_conv_gn` with its parameters: `conv`, a `WSConv2d` without bias, and `norm`, a `GroupNormAct`.

    forward(input [N, I, H, W], residual=None [N, O, H', W']) -> [N, O, H', W'].

    Args:
        padding: None keeps the size at stride 1 (odd kernels).
        gn_groups: divides out_channels.
        the rest: as for `WSConv2d` and `ws_conv_gn`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        gn_groups: int = 32,
        gn_eps: float = 1e-5,
        activation: str = "relu",
        eps: float | None = None,
        convention: str = "timm",
        scaled: bool = False,
        gamma: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if padding is None:
            sizes, steps = (value if isinstance(value, tuple) else (value, value) for value in (kernel_size, dilation))
            padding = tuple(step * (size - 1) // 2 for size, step in zip(sizes, steps, strict=True))
        self.conv = WSConv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device=device, dtype=dtype,
            eps=eps, convention=convention, scaled=scaled, gamma=gamma,
        )  # fmt: skip
        self.norm = GroupNormAct(gn_groups, out_channels, gn_eps, activation=activation, device=device, dtype=dtype)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.norm(self.conv(input), residual)

    def fold(self) -> "WSConvGN":
        """The same layer with a plain convolution in place of `conv`, for inference."""
        return fold_standardized(self)


def fold_standardized(model: nn.Module) -> nn.Module:
    """A copy of the model for inference, with a plain `nn.Conv2d` of today's standardised weight for each `WSConv2d`.

    Later changes of the model do not reach it, and its convolutions are not trained.
    """
    if isinstance(model, WSConv2d):
        return model.fold()
    # The layers' copies are never made: deepcopy finds their folded forms where it would look for copies made before.
    folded = {id(layer): layer.fold() for layer in model.modules() if isinstance(layer, WSConv2d)}
    return copy.deepcopy(model, memo=folded)
