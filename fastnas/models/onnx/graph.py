"""A small writer of ONNX graphs: nodes get names, constants and weights are stored once, shapes are declared at the edges."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
from onnx import TensorProto, helper

import fastnas
from fastnas.models.onnx.opset import raise_opset, walk

OPSET = 17  # RoiAlign's half-pixel modes need 16; 17 is read by every engine in use
IR_VERSION = 8
_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.bool_): TensorProto.BOOL,
}


Result = tuple[str, Sequence[int], np.dtype]  # a value, its shape and type


class Graph:
    """Collects nodes. Every method that adds something returns the name of the value it adds.

    static: emitters choose forms in which no shape depends on the data, except for what a suppression selects.
    batch: how many images lie in a map, None where that is known when the network runs. Shapes that emitters are given say 1.
    """

    def __init__(self, static: bool = False, batch: int | None = 1):
        self.static, self.batch = static, batch
        self._nodes = self._outermost = []
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
                with self._into(self._outermost):  # where all of the graph can read it
                    index = self.constant(np.arange(rows) % len(array), np.int64)
                    self._values[name] = self.add("Gather", name, index, axis=0)
        return self._values[name]

    def stored(self, name: str) -> str | None:
        """The value stored under this name, None where there is none."""
        return self._values.get(name)

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        """A float32 graph input; a size that is known when the network runs has a name."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def each_image(self, images: int | str, emit: Callable[[str], list[Result]]) -> list[str]:
        """Runs what `emit` adds once an image; it may read values from outside.

        images: their number, or a value int64 (1,) of it; then the nodes stand in a Loop. emit: index (1,) of an image -> results.
        Returns each result of all images: (N, *shape).
        """
        if isinstance(images, int):
            with self._of_images(1):
                turns = [emit(self.integers(index)) for index in range(images)]
            return [self._stacked([value for value, *_ in results]) for results in zip(*turns, strict=True)]
        self._count += 1
        name, body = f"Loop_{self._count}", []
        turn, going = helper.make_tensor_value_info(f"{name}.turn", TensorProto.INT64, ()), f"{name}.going"
        with self._into(body), self._of_images(1):
            results = emit(self.add("Unsqueeze", turn.name, self.integers(0)))
            again = self.add("Identity", going)  # what a body gives must be made in it
            given = [(self.add("Identity", value), shape, dtype) for value, shape, dtype in results]
        flags = [helper.make_tensor_value_info(value, TensorProto.BOOL, ()) for value in (going, again)]
        infos = [helper.make_tensor_value_info(value, _TYPES[np.dtype(dtype)], shape) for value, shape, dtype in given]
        graph = helper.make_graph(body, name, [turn, flags[0]], [flags[1], *infos])
        names = [f"{name}.{index}" for index in range(len(given))]
        count = self.add("Squeeze", images, self.integers(0))
        self._nodes.append(helper.make_node("Loop", [count, self.constant(True, np.bool_)], names, name=name, body=graph))
        return names

    def _stacked(self, values: list[str]) -> str:
        rows = [self.add("Unsqueeze", value, self.integers(0)) for value in values]
        return self.add("Concat", *rows, axis=0) if len(rows) > 1 else rows[0]

    @contextmanager
    def _into(self, nodes: list[onnx.NodeProto]) -> Iterator[None]:
        """Nodes are added to these."""
        own, self._nodes = self._nodes, nodes
        try:
            yield
        finally:
            self._nodes = own

    @contextmanager
    def _of_images(self, count: int) -> Iterator[None]:
        own, self.batch = self.batch, count
        try:
            yield
        finally:
            self.batch = own

    def model(self, outputs: list[tuple[str, str, Sequence[int | str], np.dtype]]) -> onnx.ModelProto:
        """The finished model. `outputs`: (value, name to give it, shape, dtype); one value may be given once only."""
        rename = {value: name for value, name, _, _ in outputs}
        for node in walk(self._nodes):
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
