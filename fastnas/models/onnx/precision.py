"""A float32 model in the types that it is deployed in, all of them written into the graph: what strongly typed engines read.

fp16: convolutions, linear layers, norms and all that lies between them, with their weights. What works on scores and boxes
      (sorting, decoding, RoIAlign, suppression) stays float32: a box in float16 is off by up to half a pixel. So does the
      deformable convolution, whose offsets are places too.
int8: fp16, and around every convolution and linear layer explicit quantization (Q/DQ; Jacob et al. 2018): weights per output
      channel, the input per tensor, and the shortcut of an addition, so that it is fused with the convolution before it.
      Scales of activations are the same everywhere unless given: they change numbers, not time.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fastnas.models.onnx.opset import body_of, raise_opset, replace, walk

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
COMPUTES = {"Conv", "ConvTranspose", "Gemm", "MatMul", "InstanceNormalization", "BatchNormalization", "LayerNormalization"}
FOLLOWS = {  # in the type of what they are given
    *("Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Clip", "Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("ReduceMean", "Resize", "Pad", "Flatten", "Reshape", "Concat", "Gather", "Slice", "Transpose", "Split", "Squeeze"),
    *("Unsqueeze", "Identity", "Expand"),
}
ANY_TYPE = {"Shape", "Size"}
QUANTIZED = {"Conv": 0, "Gemm": 0, "MatMul": 1}  # axis of the output channels in the weight
ACTIVATION_SCALE = 4 / 127  # four standard deviations of a normal number
_OPSET = 19  # the first in which float16 is quantized


def in_precision(model: onnx.ModelProto, precision: str, scales: Mapping[str, float] | None = None) -> onnx.ModelProto:
    """The model in `fp32`, `fp16` or `int8`; `model` itself is changed. scales: by name of the activation that is quantized."""
    _unfold(model.graph)
    if precision != "fp32":
        _halve(model.graph, _types(model))
    if precision == "int8":
        raise_opset(model, _OPSET)
        _quantize(model.graph, scales or {})
    return model


def _unfold(graph: onnx.GraphProto) -> None:
    """Writes out weights whose rows repeat (see `Graph.store`): not every engine takes the Gather for a constant."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Gather" and set(node.input) <= constants.keys():
            rows, index = (numpy_helper.to_array(constants[name]) for name in node.input)
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            constants[node.output[0]] = numpy_helper.from_array(np.take(rows, index, axis), node.output[0])
        else:
            nodes.append(node)
    replace(graph, nodes, constants)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types: dict[str, int] = {}
    for graph in (inferred, *(body for node in walk(inferred.node) if (body := body_of(node)) is not None)):
        infos = (*graph.input, *graph.output, *graph.value_info)
        types |= {info.name: info.type.tensor_type.elem_type for info in infos} | {t.name: t.data_type for t in graph.initializer}
    return types


def _halve(graph: onnx.GraphProto, types: Mapping[str, int]) -> None:
    halving = _Halving(types, {tensor.name: tensor for tensor in graph.initializer})
    for info in graph.input:
        if _is_map(info):
            info.type.tensor_type.elem_type = HALF
            halving.halves.add(info.name)
    nodes = halving.convert(graph.node)
    _halve_outputs(graph, nodes, halving.halves)
    replace(graph, nodes, halving.constants)


class _Halving:
    """types: of every value. constants: of the outermost graph, which all graphs inside it read. halves: values in float16 now."""

    def __init__(self, types: Mapping[str, int], constants: dict[str, TensorProto]):
        self.types, self.constants = types, constants
        self.halves: set[str] = set()

    def convert(self, given: Iterable[NodeProto], outer: Mapping[tuple[str, int], str] | None = None) -> list[NodeProto]:
        """The nodes of one graph, changed, with the casts that they need. outer: casts of the graphs around it."""
        casts, nodes = dict(outer or {}), []

        def converted(name: str, to: int) -> str:
            """`name` in this type, converted once for all who ask."""
            if (name in self.halves) == (to == HALF):
                return name
            if (name, to) not in casts:
                casts[name, to] = new = f"{name}.{'fp16' if to == HALF else 'fp32'}"
                if name in self.constants:
                    half = numpy_helper.to_array(self.constants[name]).astype(np.float16)
                    self.constants[new] = numpy_helper.from_array(half, new)
                else:
                    nodes.append(helper.make_node("Cast", [name], [new], name=f"Cast.{new}", to=to))
            return casts[name, to]

        for node in given:
            if (body := body_of(node)) is not None:
                self._repeat(node, body, casts)
                nodes.append(node)
                continue
            to = self._type(node)
            for index in self._floats(node):
                node.input[index] = converted(node.input[index], to)
            nodes.append(node)
            if to == HALF:
                self.halves.update(name for name in node.output if self.types.get(name) == FLOAT)
        return nodes

    def _repeat(self, loop: NodeProto, body: onnx.GraphProto, casts: Mapping[tuple[str, int], str]) -> None:
        """A Loop gives its results as its body makes them."""
        nodes = self.convert(body.node, casts)
        del body.node[:], body.value_info[:]
        body.node.extend(nodes)
        for info, name in zip(body.output[1:], loop.output, strict=True):  # the first says whether it goes on
            if info.name in self.halves:
                info.type.tensor_type.elem_type = HALF
                self.halves.add(name)

    def _type(self, node: NodeProto) -> int:
        data = [name for name in (node.input[index] for index in self._floats(node)) if name not in self.constants]
        follows = node.op_type in FOLLOWS and data and self.halves.issuperset(data)
        return HALF if node.op_type in COMPUTES or follows else FLOAT

    def _floats(self, node: NodeProto) -> list[int]:
        """Which inputs are data in a floating type."""
        if node.op_type in ANY_TYPE:
            return []
        if node.op_type == "Resize":
            return [0]  # the scales stay float32
        return [index for index, name in enumerate(node.input) if self.types.get(name) == FLOAT]


def _halve_outputs(graph: onnx.GraphProto, nodes: list[NodeProto], halves: set[str]) -> None:
    """Maps leave as float16, for the block behind takes them so; logits and deltas leave as they are."""
    for info in graph.output:
        if info.name in halves:
            info.type.tensor_type.elem_type = HALF
        elif _is_map(info) and info.type.tensor_type.elem_type == FLOAT:
            whole = f"{info.name}.fp32"
            for node in walk(nodes):
                for names in (node.input, node.output):
                    names[:] = [whole if name == info.name else name for name in names]
            nodes.append(helper.make_node("Cast", [whole], [info.name], name=f"Cast.{info.name}", to=HALF))
            info.type.tensor_type.elem_type = HALF


def _is_map(info: onnx.ValueInfoProto) -> bool:
    return len(info.type.tensor_type.shape.dim) == 4


def _quantize(graph: onnx.GraphProto, scales: Mapping[str, float]) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node.op_type for node in graph.node for name in node.output}
    done: dict[str, str] = {}
    nodes: list[NodeProto] = []

    def constant(name: str, array: np.ndarray) -> str:
        constants[name] = numpy_helper.from_array(array, name)
        return name

    def activation(name: str) -> str:
        if name not in done:
            scale = constant(f"{name}.scale", np.float16(scales.get(name, ACTIVATION_SCALE)))
            zero = constant(f"{name}.zero", np.int8(0))
            done[name] = f"{name}.dequantized"
            steps = (("QuantizeLinear", name, f"{name}.quantized"), ("DequantizeLinear", f"{name}.quantized", done[name]))
            for op, value, result in steps:
                nodes.append(helper.make_node(op, [value, scale, zero], [result], name=f"{op}.{name}"))
        return done[name]

    def weight(name: str, axis: int) -> str:
        if name not in done:
            array = numpy_helper.to_array(constants[name]).astype(np.float32)
            others = tuple(index for index in range(array.ndim) if index != axis)
            scale = np.maximum(np.abs(array).max(axis=others) / 127, 1e-6).astype(np.float16)
            spread = scale.astype(np.float32).reshape([-1 if index == axis else 1 for index in range(array.ndim)])
            integers = np.clip(np.rint(array / spread), -127, 127).astype(np.int8)
            done[name] = f"{name}.dequantized"
            inputs = [constant(f"{name}.int8", integers), constant(f"{name}.scale", scale)]
            inputs.append(constant(f"{name}.zero", np.zeros(len(scale), np.int8)))
            nodes.append(helper.make_node("DequantizeLinear", inputs, [done[name]], name=f"DequantizeLinear.{name}", axis=axis))
        return done[name]

    for node in graph.node:
        if node.op_type in QUANTIZED and node.input[1] in constants:
            node.input[0] = activation(node.input[0])
            node.input[1] = weight(node.input[1], QUANTIZED[node.op_type])
        elif node.op_type == "Add" and not set(node.input) & constants.keys():
            convolved = [producers.get(name) == "Conv" for name in node.input]
            if any(convolved):
                shortcut = 1 if convolved[0] else 0
                node.input[shortcut] = activation(node.input[shortcut])
        nodes.append(node)
    replace(graph, nodes, constants)
