"""Operators: the fused layers that a block runs as, where no block as a whole was measured.

Norms that fold into a convolution, biases, activations and sums behind a convolution are one layer with it, as inference engines
run them; a group norm is a layer of its own. An operator is a spec like any other: it has a key in latency tables, MACs and output
shapes. `Spec.operators(inputs)` lists those of a block; their MACs add up to the block's. Blocks that are no sum of layers
(RoIAlign, proposal selection, suppression) are operators themselves.

`traffic` and `operations` are what a bytes-and-operations (roofline) model needs: see `fastnas.latency.roofline`.
"""

import math
from dataclasses import dataclass

from fastnas.blueprint.spec import Shape, Shapes, Spec, conv_params, half

Operators = tuple[tuple[Spec, Shapes], ...]  # (operator, input shapes), in the order in which they run
PASSES = ("fuse", "group-norm", "max-pool", "mean", "scale", "upsample")


class Operator(Spec):
    """A spec that runs as one layer."""

    def traffic(self, inputs: Shapes) -> int:
        """Values read and written: inputs, weights and outputs, each once."""
        return elements(inputs) + elements(self.outputs(inputs)) + self.params()

    def operations(self, inputs: Shapes) -> int:
        """Arithmetic operations that the layer cannot do without; multiply-adds count as one."""
        return self.macs(inputs)

    def launches(self, inputs: Shapes) -> int:
        """Kernels that a GPU starts for it, about."""
        return 1

    def operators(self, inputs: Shapes) -> Operators:
        return ((self, inputs),)


@dataclass(frozen=True)
class Conv(Operator):
    """Convolution with folded norm, bias and activation. A second input of the output's shape is added before the activation."""

    op = "conv"
    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1  # 1 | 2
    groups: int = 1
    activation: str = ""  # "" | relu | silu | sigmoid

    def params(self) -> int:
        return conv_params(self.in_channels, self.out_channels, self.kernel, self.groups, bias=True)

    def macs(self, inputs: Shapes) -> int:
        n, _, h, w = self.outputs(inputs)[0]
        return n * conv_params(self.in_channels, self.out_channels, self.kernel, self.groups) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.out_channels, half(h), half(w)) if self.stride == 2 else (n, self.out_channels, h, w),)


@dataclass(frozen=True)
class Linear(Operator):
    """Fully connected layer with bias and activation: (R, in) -> (R, out). An input of more dimensions is flattened."""

    op = "linear"
    in_features: int
    out_features: int
    activation: str = ""

    def params(self) -> int:
        return self.in_features * self.out_features + self.out_features

    def macs(self, inputs: Shapes) -> int:
        return inputs[0][0] * self.in_features * self.out_features

    def outputs(self, inputs: Shapes) -> Shapes:
        return ((inputs[0][0], self.out_features),)


@dataclass(frozen=True)
class Pass(Operator):
    """A layer that only passes over its inputs, with few operations a value and no weights to speak of.

    kind: fuse (weighted sum of maps of one size, then an activation), group-norm (with activation; a second input is added before
    it), max-pool (`kernel`, stride 2), mean (over the map), scale (a map by one value a channel), upsample (nearest neighbour).
    """

    op = "pass"
    kind: str
    output: Shape
    kernel: int = 1  # of max-pool
    activation: str = ""

    def traffic(self, inputs: Shapes) -> int:
        again = elements(inputs[:1]) if self.kind == "group-norm" else 0  # once for the statistics, once to normalise
        return super().traffic(inputs) + again

    def operations(self, inputs: Shapes) -> int:
        return elements(inputs) * self.kernel**2

    def outputs(self, inputs: Shapes) -> Shapes:
        return (self.output,)


class Layers:
    """Collects the operators of a block while their shapes are followed, as a module's `forward` would."""

    def __init__(self):
        self._pairs: list[tuple[Spec, Shapes]] = []

    def add(self, operator: Operator, *inputs: Shape) -> Shape:
        """One more operator on these inputs; returns the shape of its output."""
        self._pairs.append((operator, inputs))
        return operator.outputs(inputs)[0]

    def conv(self, out: int, kernel: int, x: Shape, *added: Shape, stride: int = 1, groups: int = 1, activation: str = "") -> Shape:
        return self.add(Conv(x[1], out, kernel, stride, groups, activation), x, *added)

    def normed(
        self, norm: str, out: int, kernel: int, x: Shape, *added: Shape, stride: int = 1, groups: int = 1, activation: str = ""
    ) -> Shape:
        """A convolution and its norm: one layer with a batch norm (`bn`), which folds, or none; two with a group norm (`gn`, and
        `gnws`: standardised weights lie ready)."""
        if norm in ("bn", "none"):
            return self.conv(out, kernel, x, *added, stride=stride, groups=groups, activation=activation)
        x = self.conv(out, kernel, x, stride=stride, groups=groups)
        return self.add(Pass("group-norm", x, activation=activation), x, *added)

    def max_pool(self, kernel: int, x: Shape) -> Shape:
        return self.add(Pass("max-pool", (*x[:2], half(x[2]), half(x[3])), kernel), x)

    def done(self) -> Operators:
        return tuple(self._pairs)


def elements(shapes: Shapes) -> int:
    """How many values tensors of these shapes hold together."""
    return sum(map(math.prod, shapes))
