"""Blueprint -> blocks: the one source of truth that is counted, built, turned into ONNX and priced.

A block is described once per owner of weights and used one or more times: parameters count once per block, MACs and
milliseconds once per use. Uses read and write named values, so the same list is the wiring of the network.
"""

from collections import Counter
from dataclasses import dataclass

from fastnas.blueprint import blocks as b
from fastnas.blueprint.blueprint import Blueprint
from fastnas.blueprint.code import positions

IMAGE = "image"
BOXES = "proposals"
DETECTIONS = ("boxes", "scores", "labels")
ASPECT_RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Use:
    """One application of a block: names and shapes of what it reads and writes."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_shapes: b.Shapes
    output_shapes: b.Shapes


@dataclass(frozen=True)
class Block:
    """The smallest unit that is built, counted and priced, e.g. `backbone.stage1.block2`."""

    name: str
    spec: b.Spec
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

    blueprint: Blueprint
    blocks: tuple[Block, ...]
    steps: tuple[tuple[Block, Use], ...]
    shapes: dict[str, b.Shape]  # of every value

    @property
    def params(self) -> int:
        return sum(block.params for block in self.blocks)

    @property
    def macs(self) -> int:
        return sum(block.macs for block in self.blocks)

    def spec(self, kind: type[b.Spec]) -> b.Spec:
        """The spec of the one block of this kind."""
        return next(block.spec for block in self.blocks if isinstance(block.spec, kind))

    def prices(self) -> Counter[tuple[b.Spec, b.Shapes]]:
        """How often each (spec, input shapes) is used: what an oracle sums over."""
        return Counter((block.spec, use.input_shapes) for block, use in self.steps)


class _Wiring:
    """Collects blocks and uses while a blueprint is walked."""

    def __init__(self, image: b.Shape):
        self.shapes: dict[str, b.Shape] = {IMAGE: image}
        self.specs: dict[str, b.Spec] = {}
        self.uses: dict[str, list[Use]] = {}
        self.order: list[tuple[str, int]] = []

    def add(self, name: str, spec: b.Spec, inputs: list[str], outputs: tuple[str, ...] | None = None) -> str:
        """Adds one use of block `name`; returns the name of its first output."""
        shapes = tuple(self.shapes[value] for value in inputs)
        results = spec.outputs(shapes)
        outputs = outputs or (name,)
        assert self.specs.setdefault(name, spec) == spec and len(outputs) == len(results)
        self.shapes.update(zip(outputs, results, strict=True))
        uses = self.uses.setdefault(name, [])
        uses.append(Use(tuple(inputs), outputs, shapes, results))
        self.order.append((name, len(uses) - 1))
        return outputs[0]

    def network(self, blueprint: Blueprint) -> Network:
        blocks = {name: Block(name, spec, tuple(self.uses[name])) for name, spec in self.specs.items()}
        steps = tuple((blocks[name], blocks[name].uses[index]) for name, index in self.order)
        return Network(blueprint, tuple(blocks.values()), steps, self.shapes)


def expand(blueprint: Blueprint) -> Network:
    """All blocks of a blueprint with shapes at batch 1. Pure arithmetic, well under a millisecond for most networks."""
    wiring = _Wiring((1, 3, *blueprint.input))
    levels = _backbone(wiring, blueprint)
    pyramid = _neck(wiring, blueprint, levels)
    boxes = _proposals(wiring, blueprint, pyramid)
    _head(wiring, blueprint, pyramid[: len(levels)], boxes)
    return wiring.network(blueprint)


def stage_block_name(stage: int, index: int) -> str:
    """Name of a backbone block; both arguments count from 0, the name counts from 1."""
    return f"backbone.stage{stage + 1}.block{index + 1}"


def _backbone(wiring: _Wiring, blueprint: Blueprint) -> list[str]:
    backbone = blueprint.backbone
    value = wiring.add("backbone.stem", b.Stem(backbone.stem, backbone.base, backbone.norm), [IMAGE])
    channels, levels = backbone.base, {}
    for at in positions(backbone.code):
        spec = b.Residual(backbone.block, channels, backbone.base << at.doublings, at.stride, backbone.norm)
        value = wiring.add(stage_block_name(at.stage, at.index), spec, [value])
        channels, levels[at.stage] = spec.out_channels, value
    return list(levels.values())


def _neck(wiring: _Wiring, blueprint: Blueprint, levels: list[str]) -> list[str]:
    """Pyramid levels P2, P3, ... from fine to coarse, one more than the backbone has stages."""
    pyramid: list[str] = []
    merged = None
    for index in reversed(range(len(levels))):
        spec = b.FpnLevel(wiring.shapes[levels[index]][1], blueprint.neck.channels, top=merged is None, feeds=index > 0)
        name = f"neck.p{index + 2}"
        outputs = (name, f"{name}.merged") if spec.feeds else (name,)
        pyramid.insert(0, wiring.add(name, spec, [levels[index], merged] if merged else [levels[index]], outputs))
        merged = f"{name}.merged"
    return [*pyramid, wiring.add(f"neck.p{len(levels) + 2}", b.MaxPoolLevel(), [pyramid[-1]])]


def _proposals(wiring: _Wiring, blueprint: Blueprint, pyramid: list[str]) -> str:
    rpn = blueprint.rpn
    spec = b.RpnHead(blueprint.neck.channels, len(ASPECT_RATIOS))
    scores, deltas = [], []
    for level, value in enumerate(pyramid, start=2):
        scores.append(wiring.add("rpn.head", spec, [value], (f"rpn.scores{level}", f"rpn.deltas{level}")))
        deltas.append(f"rpn.deltas{level}")
    strides = tuple(4 << index for index in range(len(pyramid)))
    selection = b.Proposals(blueprint.input, strides, rpn.scale, ASPECT_RATIOS, rpn.topk, rpn.proposals)
    return wiring.add("rpn.proposals", selection, scores + deltas, (BOXES,))


def _head(wiring: _Wiring, blueprint: Blueprint, levels: list[str], boxes: str) -> None:
    head = blueprint.head
    pool = b.RoiPool(tuple(4 << index for index in range(len(levels))))
    regions = wiring.add("head.pool", pool, [*levels, boxes])
    spec = b.BoxHead(blueprint.neck.channels, pool.resolution, head.hidden, blueprint.classes + 1)
    wiring.add("head.box", spec, [regions], ("head.logits", "head.deltas"))
    wiring.add("head.detections", b.Detections(blueprint.input, head.detections), [boxes, "head.logits", "head.deltas"], DETECTIONS)
