"""A small writer of ONNX graphs: nodes get names, constants and weights are stored once, shapes are declared at the edges."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

import fastnas
from fastnas.models.onnx.opset import raise_opset

OPSET = 17  # RoiAlign's half-pixel modes need 16; 17 is read by every engine in use
IR_VERSION = 8
_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.bool_): TensorProto.BOOL,
}


class Graph:
    """Collects nodes. Every method that adds something returns the name of the value it adds.

    static: emitters choose forms in which no shape depends on the data, except for what a suppression selects.
    batch: how many images lie in a map, None where that is known when the network runs. Shapes that emitters are given say 1.
    """

    def __init__(self, static: bool = False, batch: int | None = 1):
        self.static, self.batch = static, batch
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._values: dict[str, str] = {}  # by the names they were stored under
        self._constants: dict[tuple, str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._count, self._opset = 0, OPSET

    def need(self, opset: int) -> None:
        """Some node needs this opset; without such a node the model stays in OPSET."""
        self._opset = max(self._opset, opset)

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes):
        """One node; returns the name of its output, or a tuple of names where it has several."""
        self._count += 1
        names = [f"{op}_{self._count}"] if outputs == 1 else [f"{op}_{self._count}.{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(op, inputs, names, name=f"{op}_{self._count}", **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def constant(self, values, dtype=np.float32) -> str:
        """A constant array; equal ones are stored once."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.store(f"constant_{len(self._constants)}", array)
        return self._constants[key]

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def store(self, name: str, array: np.ndarray, rows: int | None = None) -> str:
        """An initializer under this name; the first one stored under a name stays.

        Where the array has fewer than `rows` rows they repeat: by a Gather of constants, which engines fold when they load.
        """
        if name not in self._values:
            tensor = TensorProto(name=name, data_type=_TYPES[array.dtype], dims=array.shape)
            tensor.raw_data = array.tobytes()
            self._initializers.append(tensor)
            self._values[name] = name
            if rows is not None and rows != len(array):
                self._values[name] = self.add("Gather", name, self.constant(np.arange(rows) % len(array), np.int64), axis=0)
        return self._values[name]

    def stored(self, name: str) -> str | None:
        """The value stored under this name, None where there is none."""
        return self._values.get(name)

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        """A float32 graph input; a size that is known when the network runs has a name."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def model(self, outputs: list[tuple[str, str, Sequence[int | str], np.dtype]]) -> onnx.ModelProto:
        """The finished model. `outputs`: (value, name to give it, shape, dtype); one value may be given once only."""
        rename = {value: name for value, name, _, _ in outputs}
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, value in enumerate(names):
                    names[index] = rename.get(value, value)
        infos = [helper.make_tensor_value_info(name, _TYPES[np.dtype(dtype)], shape) for _, name, shape, dtype in outputs]
        graph = helper.make_graph(self._nodes, "fastnas", self._inputs, infos)
        graph.initializer.extend(self._initializers)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="fastnas",
            producer_version=fastnas.__version__,
        )
        raise_opset(model, self._opset)
        return model
