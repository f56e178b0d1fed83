"""What is timed: one block at its input shapes, or a whole network on the synthetic scene.

An engine asks a workload for the form that it runs (ONNX or module) and for the inputs, and knows nothing else of detectors.
Both forms have the same inputs, names and all, do the same work and hold random weights.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx

from fastnas.blueprint.blocks import Shapes, Spec
from fastnas.blueprint.expand import Network
from fastnas.models.onnx import block_inputs, block_model, network_inputs, network_model

if TYPE_CHECKING:
    from fastnas.models.timed import Timed


class Workload(Protocol):
    def onnx(self, static: bool = False) -> onnx.ModelProto:
        """Float32. `static`: no shape inside depends on the data (see `fastnas.models.onnx.boxes`), which some engines need."""
        ...

    def module(self) -> "Timed":
        """In eval mode, float32, on the CPU; takes the inputs by position. Loads torch."""
        ...

    def inputs(self) -> dict[str, np.ndarray]:
        """Float32 arrays by input name."""
        ...


@dataclass(frozen=True)
class BlockWorkload:
    spec: Spec
    shapes: Shapes

    def onnx(self, static: bool = False) -> onnx.ModelProto:
        return block_model(self.spec, self.shapes, static=static)

    def module(self) -> "Timed":
        from fastnas.models.timed import timed_block

        return timed_block(self.spec, self.shapes)

    def inputs(self) -> dict[str, np.ndarray]:
        return block_inputs(self.spec, self.shapes)

    def __str__(self) -> str:
        return f"{self.spec} at {', '.join('x'.join(map(str, shape)) for shape in self.shapes)}"


@dataclass(frozen=True)
class NetworkWorkload:
    """The data-dependent blocks read the synthetic scene: see `fastnas.models.onnx.synthetic`."""

    network: Network

    def onnx(self, static: bool = False) -> onnx.ModelProto:
        return network_model(self.network, synthetic_scores=True, static=static)

    def module(self) -> "Timed":
        from fastnas.models.timed import timed_network

        return timed_network(self.network)

    def inputs(self) -> dict[str, np.ndarray]:
        return network_inputs(self.network)

    def __str__(self) -> str:
        return self.network.blueprint.text
