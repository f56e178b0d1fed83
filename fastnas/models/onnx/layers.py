"""Blocks made of convolutions and linear layers, as they are deployed: batch norm folded into the convolution before it.

An emitter takes (graph, weights, name, spec, inputs, input shapes) and returns the names of its outputs; `name` is the block's.
"""

import numpy as np

from fastnas.blueprint import blocks as b
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.weights import EPS, Weights

WS_EPS = 1e-5  # of standardised weights
_LAST = 0.25  # gain of the last convolution of a residual branch with random weights: depth must not blow the values up


def emit_stem(graph: Graph, weights: Weights, name: str, spec: b.Stem, inputs: list[str], shapes: b.Shapes) -> list[str]:
    pools = spec.kind == "7x7"

    def convolved(index: int, value: str, shape: tuple[int, ...]) -> str:
        layers = f"{name}.conv{index}", f"{name}.norm{index}"
        return conv_norm(graph, weights, *layers, spec.norm, value, shape, stride=2, act="relu", most=spec.channels // 2)

    first = convolved(1, inputs[0], (spec.first, 3, 7, 7) if pools else (spec.first, 3, 3, 3))
    if pools:
        value = graph.add("MaxPool", first, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    else:
        value = convolved(2, first, (spec.channels, spec.first, 3, 3))
    return [value, first] if spec.taps else [value]


def emit_residual(graph: Graph, weights: Weights, name: str, spec: b.Residual, inputs: list[str], shapes: b.Shapes) -> list[str]:
    convs = spec.convs()
    chain = convs[:-1] if spec.projects else convs
    strided = next(index for index, conv in enumerate(chain) if conv[2] == 3)  # the stride sits on the first 3x3
    value = inputs[0]
    for index, (cin, cout, kernel, groups, _) in enumerate(chain):
        last = index == len(chain) - 1
        layers, shape = (f"{name}.conv{index + 1}", f"{name}.norm{index + 1}"), (cout, cin // groups, kernel, kernel)
        value = conv_norm(
            graph, weights, *layers, spec.norm, value, shape,
            stride=spec.stride if index == strided else 1, groups=groups, act=None if last else "relu", gain=_LAST if last else 1.0,
            most=spec.base // 2,
        )  # fmt: skip
    shortcut = inputs[0]
    if spec.projects:
        cin, cout, kernel, _, _ = convs[-1]
        shape = (cout, cin, kernel, kernel)
        layers = f"{name}.downsample.conv", f"{name}.downsample.norm"
        shortcut = conv_norm(
            graph, weights, *layers, spec.norm, shortcut, shape, stride=spec.stride, gain=0.7, most=spec.base // 2
        )
    return [graph.add("Relu", graph.add("Add", value, shortcut))]


def emit_connector(graph: Graph, weights: Weights, name: str, spec: b.Connector, inputs: list[str], shapes: b.Shapes) -> list[str]:
    layers, shape = (f"{name}.feedback.conv", f"{name}.feedback.norm"), (spec.channels, spec.in_channels, 1, 1)
    fed = conv_norm(graph, weights, *layers, spec.norm, inputs[1], shape, gain=_LAST, most=spec.groups)
    if shapes[1][2:] != shapes[0][2:]:
        fed = upsample(graph, fed, (shapes[1][0], spec.channels, *shapes[1][2:]), shapes[0])
    return [graph.add("Add", inputs[0], fed)]


def emit_fpn_level(graph: Graph, weights: Weights, name: str, spec: b.FpnLevel, inputs: list[str], shapes: b.Shapes) -> list[str]:
    merged = pyramid_conv(graph, weights, f"{name}.lateral", spec.norm, inputs[0], (spec.channels, spec.in_channels, 1, 1))
    if not spec.top:
        merged = graph.add("Add", merged, upsample(graph, inputs[1], shapes[1], shapes[0]))
    level = pyramid_conv(graph, weights, f"{name}.output", spec.norm, merged, (spec.channels, spec.channels, 3, 3))
    return [level, merged] if spec.feeds else [level]


def pyramid_conv(
    graph: Graph, weights: Weights, layer: str, norm: str, value: str, shape: tuple[int, ...], stride: int = 1
) -> str:
    """A convolution with a bias, or with a norm behind it."""
    if norm == "none":
        return conv(graph, weights, layer, value, shape, gain=0.7, stride=stride)
    return conv_norm(graph, weights, f"{layer}.conv", f"{layer}.norm", norm, value, shape, gain=0.7, stride=stride)


def emit_max_pool_level(graph: Graph, weights: Weights, name: str, spec, inputs: list[str], shapes: b.Shapes) -> list[str]:
    return [graph.add("MaxPool", inputs[0], kernel_shape=[1, 1], strides=[2, 2])]


def emit_conv_level(graph: Graph, weights: Weights, name: str, spec: b.ConvLevel, inputs: list[str], shapes: b.Shapes) -> list[str]:
    value, shape = graph.add("Relu", inputs[0]) if spec.relu else inputs[0], (spec.channels, spec.in_channels, 3, 3)
    return [pyramid_conv(graph, weights, f"{name}.output", spec.norm, value, shape, stride=2)]


def emit_rpn_head(graph: Graph, weights: Weights, name: str, spec: b.RpnHead, inputs: list[str], shapes: b.Shapes) -> list[str]:
    channels, anchors = spec.channels, spec.anchors
    value = graph.add("Relu", conv(graph, weights, f"{name}.conv", inputs[0], (channels, channels, 3, 3)))
    return [
        conv(graph, weights, f"{name}.cls_logits", value, (anchors, channels, 1, 1)),
        conv(graph, weights, f"{name}.bbox_pred", value, (4 * anchors, channels, 1, 1), gain=0.1),
    ]


def emit_box_head(graph: Graph, weights: Weights, name: str, spec: b.BoxHead, inputs: list[str], shapes: b.Shapes) -> list[str]:
    inside = spec.channels * spec.resolution**2
    value = graph.add("Flatten", inputs[0])
    value = graph.add("Relu", linear(graph, weights, f"{name}.fc6", value, (spec.hidden, inside)))
    value = graph.add("Relu", linear(graph, weights, f"{name}.fc7", value, (spec.hidden, spec.hidden)))
    return [
        linear(graph, weights, f"{name}.cls_score", value, (spec.logits, spec.hidden)),
        linear(graph, weights, f"{name}.bbox_pred", value, (spec.deltas, spec.hidden), gain=0.1),
    ]


def emit_region_predictor(
    graph: Graph, weights: Weights, name: str, spec: b.RegionPredictor, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    value = graph.add("Flatten", graph.add("GlobalAveragePool", inputs[0]))
    return [
        linear(graph, weights, f"{name}.cls_score", value, (spec.logits, spec.channels)),
        linear(graph, weights, f"{name}.bbox_pred", value, (4 * (spec.logits - 1), spec.channels), gain=0.1),
    ]


def emit_conv_tower(
    graph: Graph, weights: Weights, name: str, spec: b.ConvTower, inputs: list[str], shapes: b.Shapes, use: int = 0
) -> list[str]:
    """With batch norm the weights are stored once a level, for each has the level's norm folded in."""
    value, shape = inputs[0], (spec.channels, spec.channels, 3, 3)
    for index in range(spec.convs):
        layer = f"{name}.convs.{index}"
        if spec.norm == "none":
            value = graph.add("Relu", conv(graph, weights, layer, value, shape))
        else:
            norm = f"{name}.norms.{index}.{use % spec.norms}"
            value = conv_norm(graph, weights, layer, norm, spec.norm, value, shape, act="relu")
    return [conv(graph, weights, f"{name}.predictor", value, (spec.out_channels, *shape[1:]), gain=0.5)]


def conv_norm(
    graph: Graph, weights: Weights, conv: str, norm: str, kind: str, value: str, shape: tuple[int, ...], stride: int = 1,
    groups: int = 1, act: str | None = None, gain: float = 1.0, pads: list[int] | None = None, eps: float = EPS, bias: bool = False,
    most: int = 32,
) -> str:  # fmt: skip
    """Convolution, norm and activation (relu, relu6, silu). conv, norm: names of the two layers; bias: of the convolution.

    kind: bn | gn | gnws; most: as for `norm_groups`. pads: top, left, bottom, right (default: half the kernel everywhere).
    """
    if kind == "bn":
        weight, shift = weights.folded(conv, norm, shape, gain, eps, bias)
        parameters = [graph.store(f"{norm}.folded.weight", weight, shape[0]), graph.store(f"{norm}.folded.bias", shift)]
    else:
        weight = weights.dense(conv, shape, gain)
        parameters = [graph.store(f"{conv}.weight", standardized(weight) if kind == "gnws" else weight, shape[0])]
    value = graph.add("Conv", value, *parameters, **window(shape[2], stride, pads), group=groups)
    if kind != "bn":
        value = group_norm(graph, weights, norm, value, shape[0], b.norm_groups(kind, shape[0], most))
    return activation(graph, value, act)


def activation(graph: Graph, value: str, act: str | None) -> str:
    if act == "silu":
        return graph.add("Mul", value, graph.add("Sigmoid", value))
    if act == "relu6":
        return graph.add("Clip", value, graph.constant(0), graph.constant(6))
    return graph.add("Relu", value) if act == "relu" else value


def standardized(weight: np.ndarray) -> np.ndarray:
    """Filters of zero mean and unit variance (Qiao et al. 2019), as `fastnas.ops.standardize_weight` by the paper's convention."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    rows = (rows - rows.mean(1, keepdims=True)) / (rows.std(1, ddof=min(1, rows.shape[1] - 1), keepdims=True) + WS_EPS)
    return rows.reshape(weight.shape).astype(np.float32)


def group_norm(graph: Graph, weights: Weights, name: str, value: str, channels: int, groups: int) -> str:
    """GroupNorm (Wu & He 2018) as instance norm over (groups, everything else), then scale and shift per channel.

    The latter as a batch norm with mean 0 and variance 1: one pass over the map, about 3 % of a block faster than Mul and Add.
    """
    grouped = graph.add("Reshape", value, graph.integers(0, groups, -1))  # 0: as many images as there are
    ones, zeros = graph.constant(np.ones(groups)), graph.constant(np.zeros(groups))
    grouped = graph.add("InstanceNormalization", grouped, ones, zeros, epsilon=EPS)
    value = graph.add("Reshape", grouped, graph.add("Shape", value))
    gamma, beta = weights.affine(name, channels)
    affine = graph.store(f"{name}.weight", gamma), graph.store(f"{name}.bias", beta)
    zeros, ones = graph.constant(np.zeros(channels)), graph.constant(np.ones(channels))
    return graph.add("BatchNormalization", value, *affine, zeros, ones, epsilon=0.0)


def conv(
    graph: Graph, weights: Weights, layer: str, value: str, shape: tuple[int, ...],
    gain: float = 1.0, groups: int = 1, bias: bool = True, stride: int = 1,
) -> str:  # fmt: skip
    """Convolution without a norm."""
    if bias:
        parameters = weight_and_bias(graph, weights, layer, shape, gain)
    else:
        parameters = (graph.store(f"{layer}.weight", weights.dense(layer, shape, gain), shape[0]),)
    return graph.add("Conv", value, *parameters, **window(shape[2], stride), group=groups)


def linear(graph: Graph, weights: Weights, layer: str, value: str, shape: tuple[int, ...], gain: float = 1.0) -> str:
    return graph.add("Gemm", value, *weight_and_bias(graph, weights, layer, shape, gain), transB=1)


def weight_and_bias(graph: Graph, weights: Weights, layer: str, shape: tuple[int, ...], gain: float) -> tuple[str, str]:
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    if not graph.stored(weight):  # shared blocks are emitted once a use
        graph.store(weight, weights.dense(layer, shape, gain), shape[0])
        graph.store(bias, weights.bias(layer, shape[0]))
    return graph.stored(weight), graph.stored(bias)


def window(kernel: int, stride: int, pads: list[int] | None = None) -> dict:
    return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads or [kernel // 2] * 4}


def pads(padding: str, shape: b.Shape, kernel: int, stride: int) -> list[int]:
    """Of a window over a map of this shape: top, left, bottom, right. padding: same (TensorFlow's) | symmetric."""
    if padding == "symmetric":
        return [kernel // 2] * 4
    total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in shape[2:]]
    return [side // 2 for side in total] + [side - side // 2 for side in total]


def upsample(graph: Graph, value: str, shape: b.Shape, target: b.Shape) -> str:
    """Nearest neighbour to the target's size, as torch's interpolate: source = floor(destination x in / out)."""
    mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if (target[2], target[3]) == (2 * shape[2], 2 * shape[3]):  # given as scales, engines take their fast path
        return graph.add("Resize", value, "", graph.constant([1, 1, 2, 2]), **mode)
    if graph.batch is None:  # the number of images is read from the map
        images = graph.add("Slice", graph.add("Shape", value), graph.integers(0), graph.integers(1))
        sizes = graph.add("Concat", images, graph.integers(shape[1], *target[2:]), axis=0)
    else:
        sizes = graph.integers(graph.batch * shape[0], shape[1], *target[2:])  # of regions there are shape[0] an image
    return graph.add("Resize", value, "", "", sizes, **mode)
