"""Models in a later opset than they were written in."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

_AXES = {"ReduceMin", "ReduceMax", "ReduceMean"}  # had their axes as an attribute until opset 18


def raise_opset(model: onnx.ModelProto, version: int) -> None:
    """To opset `version`, 18 to 20, if `model` is in an older one. Of the operators used, Split and the reductions are written
    differently there."""
    if model.opset_import[0].version >= version:
        return
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in walk(graph.node):
        if node.op_type == "Split" and len(node.input) == 1:
            node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))
        axes = next((attribute for attribute in node.attribute if attribute.name == "axes"), None)
        if node.op_type in _AXES and axes is not None:
            name = f"{node.name}.axes"
            constants[name] = numpy_helper.from_array(np.array(axes.ints, np.int64), name)
            node.input.append(name)
            node.attribute.remove(axes)
    replace(graph, list(graph.node), constants)
    model.opset_import[0].version = version
    model.ir_version = max(model.ir_version, 9)


def replace(graph: onnx.GraphProto, nodes: list[NodeProto], constants: Mapping[str, TensorProto]) -> None:
    """Gives the graph these nodes, and those of the constants that they read."""
    read = {name for node in walk(nodes) for name in node.input}
    kept = [constant for name, constant in constants.items() if name in read]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend(kept)


def walk(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """These nodes, each followed by those of the graph inside it."""
    for node in nodes:
        yield node
        if (body := body_of(node)) is not None:
            yield from walk(body.node)


def body_of(node: NodeProto) -> onnx.GraphProto | None:
    """The graph that a Loop repeats; None for other nodes."""
    return next((attribute.g for attribute in node.attribute if attribute.name == "body"), None)
