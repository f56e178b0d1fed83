"""Network: the blocks of a blueprint, how often each is used and what its uses read and write.

A block is described once per owner of weights and used one or more times: parameters count once per block, MACs and
milliseconds once per use. Uses read and write named values, so the same list is the wiring of the network.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastnas.blueprint.spec import Shape, Shapes, Spec

if TYPE_CHECKING:
    from fastnas.blueprint.blueprint import Blueprint

IMAGE = "image"
BOXES = "proposals"
DETECTIONS = ("boxes", "scores", "labels")


@dataclass(frozen=True)
class Use:
    """One application of a block: names and shapes of what it reads and writes; `index` counts the uses of the block from 0."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_shapes: Shapes
    output_shapes: Shapes
    index: int = 0


@dataclass(frozen=True)
class Block:
    """The smallest unit that is built, counted and priced, e.g. `backbone.stage1.block2`."""

    name: str
    spec: Spec
    uses: tuple[Use, ...]

    @property
    def params(self) -> int:
        return self.spec.params()

    @property
    def macs(self) -> int:
        return sum(self.spec.macs(use.input_shapes) for use in self.uses)

    def to_dict(self) -> dict:
        return {
            "name": self.name,
            "params": self.params,
            "macs": self.macs,
            "uses": len(self.uses),
            "inputs": [[list(shape) for shape in use.input_shapes] for use in self.uses],
            "outputs": [[list(shape) for shape in use.output_shapes] for use in self.uses],
        }


@dataclass(frozen=True)
class Network:
    """All blocks of a blueprint. `steps` is the order of execution: (block, use) pairs over named values."""

    blueprint: "Blueprint"
    blocks: tuple[Block, ...]
    steps: tuple[tuple[Block, Use], ...]
    shapes: dict[str, Shape]  # of every value

    @property
    def params(self) -> int:
        return sum(block.params for block in self.blocks)

    @property
    def macs(self) -> int:
        return sum(block.macs for block in self.blocks)

    def spec(self, kind: type[Spec]) -> Spec:
        """The spec of the one block of this kind."""
        return next(block.spec for block in self.blocks if isinstance(block.spec, kind))

    def prices(self) -> Counter[tuple[Spec, Shapes]]:
        """How often each (spec, input shapes) is used: what an oracle sums over."""
        return Counter((block.spec, use.input_shapes) for block, use in self.steps)


class Wiring:
    """Collects blocks and uses while the parts of a blueprint add theirs. The image is the value `IMAGE`."""

    def __init__(self, image: Shape):
        self.shapes: dict[str, Shape] = {IMAGE: image}
        self._specs: dict[str, Spec] = {}
        self._uses: dict[str, list[Use]] = {}
        self._order: list[tuple[str, int]] = []

    @property
    def input(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.shapes[IMAGE][2:]

    def channels(self, value: str) -> int:
        return self.shapes[value][1]

    def add(self, name: str, spec: Spec, inputs: list[str], outputs: tuple[str, ...] | None = None) -> str:
        """Adds one use of block `name`; returns the name of its first output (default: the block's name)."""
        shapes = tuple(self.shapes[value] for value in inputs)
        results = spec.outputs(shapes)
        outputs = outputs or (name,)
        assert self._specs.setdefault(name, spec) == spec and len(outputs) == len(results)
        self.shapes.update(zip(outputs, results, strict=True))
        uses = self._uses.setdefault(name, [])
        uses.append(Use(tuple(inputs), outputs, shapes, results, len(uses)))
        self._order.append((name, len(uses) - 1))
        return outputs[0]

    def network(self, blueprint: "Blueprint") -> Network:
        blocks = {name: Block(name, spec, tuple(self._uses[name])) for name, spec in self._specs.items()}
        steps = tuple((blocks[name], blocks[name].uses[index]) for name, index in self._order)
        return Network(blueprint, tuple(blocks.values()), steps, self.shapes)


def stage_block_name(stage: int, index: int, copy: int | None = None) -> str:
    """Name of a backbone block, or of the weights that a copy of its stage (from 1) has of its own.

    stage and index count from 0, the name counts from 1.
    """
    return f"backbone.stage{stage + 1}.{f'copy{copy}.' if copy else ''}block{index + 1}"
