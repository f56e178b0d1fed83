"""A float32 model in the types that it is deployed in, all of them written into the graph: what strongly typed engines read.

fp16: convolutions, linear layers, norms and all that lies between them, with their weights. What works on scores and boxes
      (sorting, decoding, RoIAlign, suppression) stays float32: a box in float16 is off by up to half a pixel. So does the
      deformable convolution, whose offsets are places too.
int8: fp16, and around every convolution and linear layer explicit quantization (Q/DQ; Jacob et al. 2018): weights per output
      channel, the input per tensor, and the shortcut of an addition, so that it is fused with the convolution before it.
      Scales of activations are the same everywhere unless given: they change numbers, not time.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fastnas.models.onnx.opset import raise_opset, replace

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
    graph = onnx.shape_inference.infer_shapes(model).graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    return {info.name: info.type.tensor_type.elem_type for info in infos} | {t.name: t.data_type for t in graph.initializer}


def _halve(graph: onnx.GraphProto, types: Mapping[str, int]) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    halves: set[str] = set()  # values that are float16 now
    casts: dict[tuple[str, int], str] = {}
    nodes: list[NodeProto] = []
    for info in graph.input:
        if _is_map(info):
            info.type.tensor_type.elem_type = HALF
            halves.add(info.name)

    def converted(name: str, to: int) -> str:
        """`name` in this type, converted once for all who ask."""
        if (name in halves) == (to == HALF):
            return name
        if (name, to) not in casts:
            casts[name, to] = new = f"{name}.{'fp16' if to == HALF else 'fp32'}"
            if name in constants:
                constants[new] = numpy_helper.from_array(numpy_helper.to_array(constants[name]).astype(np.float16), new)
            else:
                nodes.append(helper.make_node("Cast", [name], [new], name=f"Cast.{new}", to=to))
        return casts[name, to]

    for node in graph.node:
        floats = [index for index, name in enumerate(node.input) if types.get(name) == FLOAT]
        if node.op_type in ANY_TYPE:
            floats = []
        elif node.op_type == "Resize":
            floats = [0]  # the scales stay float32
        data = [node.input[index] for index in floats if node.input[index] not in constants]
        follows = node.op_type in FOLLOWS and data and halves.issuperset(data)
        to = HALF if node.op_type in COMPUTES or follows else FLOAT
        for index in floats:
            node.input[index] = converted(node.input[index], to)
        nodes.append(node)
        if to == HALF:
            halves.update(name for name in node.output if types.get(name) == FLOAT)
    _halve_outputs(graph, nodes, halves)
    replace(graph, nodes, constants)


def _halve_outputs(graph: onnx.GraphProto, nodes: list[NodeProto], halves: set[str]) -> None:
    """Maps leave as float16, for the block behind takes them so; logits and deltas leave as they are."""
    for info in graph.output:
        if info.name in halves:
            info.type.tensor_type.elem_type = HALF
        elif _is_map(info) and info.type.tensor_type.elem_type == FLOAT:
            inner = f"{info.name}.fp32"
            for node in nodes:
                for names in (node.input, node.output):
                    names[:] = [inner if name == info.name else name for name in names]
            nodes.append(helper.make_node("Cast", [inner], [info.name], name=f"Cast.{info.name}", to=HALF))
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
