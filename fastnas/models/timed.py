"""Blocks and whole networks as modules to be timed: as `fastnas.models.onnx` writes them, in torch.

They differ from the detector that is trained as any deployed network does: batch norm is folded into the convolution before it,
weights are standardised beforehand, anchors lie ready on the device, one image at a time. The blocks whose time depends on the
data read the synthetic scene.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastnas.blueprint import blocks as b
from fastnas.blueprint.wiring import DETECTIONS, IMAGE, Network
from fastnas.models import one_stage
from fastnas.models.blocks import build_block
from fastnas.models.boxes import select_detections
from fastnas.models.fold import fold_batch_norms, folded
from fastnas.models.onnx.build import block_inputs, replaced_inputs
from fastnas.models.proposals import make_anchors, read_maps, select_proposals

LAST_SCALE = 0.25  # of norms that start at zero: what a branch computes shall not vanish, nor grow with depth


class Proposals(nn.Module):
    """Maps of all levels -> boxes (<= proposals, 4)."""

    def __init__(self, spec: b.Proposer, shapes: b.Shapes):
        super().__init__()
        self.spec = spec
        for index, anchors in enumerate(make_anchors(spec, [shape[2:] for shape in shapes[: len(spec.strides)]])):
            self.register_buffer(f"anchors{index}", anchors)

    def forward(self, *maps: Tensor) -> Tensor:
        return select_proposals(self.spec, read_maps(self.spec, maps, list(self.buffers())))[0]


class RoiPool(nn.Module):
    """Levels and boxes (R, 4) of the one image -> (R, C, s, s)."""

    def __init__(self, spec: b.RoiPool, shapes: b.Shapes):
        super().__init__()
        self.pool = build_block(spec)

    def forward(self, *values: Tensor) -> Tensor:
        *levels, boxes = values
        return self.pool(*levels, nn.functional.pad(boxes, (1, 0)))


class Detections(nn.Module):
    """Boxes (R, 4), logits of every stage and deltas -> boxes (D, 4), scores (D,), labels (D,)."""

    def __init__(self, spec: b.Detections, shapes: b.Shapes):
        super().__init__()
        self.spec = spec

    def forward(self, boxes: Tensor, *predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *logits, deltas = predicted
        found = select_detections(self.spec, nn.functional.pad(boxes, (1, 0)), logits, deltas, 1)[0]
        return found["boxes"], found["scores"], found["labels"]


class AnchorDetections(nn.Module):
    """Class maps and box maps of all levels -> boxes (D, 4), scores (D,), labels (D,)."""

    def __init__(self, spec: b.AnchorHead, shapes: b.Shapes):
        super().__init__()
        self.spec = spec
        maps = [tuple(shape[2:]) for shape in shapes[: len(shapes) // 2]]
        for index, anchors in enumerate(one_stage.make_anchors(spec, maps)):
            self.register_buffer(f"anchors{index}", anchors)

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = len(maps) // 2
        logits, codes = one_stage.flatten_maps(self.spec, list(maps[:levels]), list(maps[levels:]))
        found = one_stage.select_anchors(self.spec, logits, codes, list(self.buffers()))[0]
        return found["boxes"], found["scores"], found["labels"]


BOX_MODULES: dict[type[b.Spec], type[nn.Module]] = {
    b.Proposals: Proposals,
    b.GuidedProposals: Proposals,
    b.RoiPool: RoiPool,
    b.Detections: Detections,
    b.AnchorDetections: AnchorDetections,
    b.RetinaDetections: AnchorDetections,
}
DYNAMIC = Proposals, Detections, AnchorDetections  # what they select is known when they ran


@dataclass(frozen=True)
class Step:
    """One use of a block: names of the values that it reads and writes."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def static(self) -> bool:
        """Whether all shapes inside are known beforehand, as capturing and compiling need it."""
        return not isinstance(self.module, DYNAMIC)


class Part(nn.Module):
    """Consecutive steps. Takes the values named `inputs`, returns a tuple of those named `outputs`."""

    def __init__(self, steps: Sequence[Step], wanted: Iterable[str]):
        super().__init__()
        self.static = steps[0].static
        self.modules_ = nn.ModuleList(step.module for step in steps)
        self._wiring = [(step.inputs, step.outputs) for step in steps]
        made = [name for step in steps for name in step.outputs]
        self.inputs = tuple(dict.fromkeys(name for step in steps for name in step.inputs if name not in made))
        self.outputs = tuple(name for name in made if name in set(wanted))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(self.inputs, tensors, strict=True))
        for module, (inputs, outputs) in zip(self.modules_, self._wiring, strict=True):
            results = module(*(values[name] for name in inputs))
            values.update(zip(outputs, results if isinstance(results, tuple) else (results,), strict=True))
        return tuple(values[name] for name in self.outputs)


class Timed(nn.Module):
    """What an engine runs: parts one after the other. Each holds as many steps as are static, or as are not, in a row.

    inputs: names of the values that `forward` takes, in order; boxes: those of them that are coordinates and stay float32.
    outputs: names of what `forward` returns.
    """

    def __init__(self, steps: Sequence[Step], inputs: Iterable[str], boxes: set[str], outputs: Sequence[str]):
        super().__init__()
        self.inputs, self.boxes, self.outputs = tuple(inputs), frozenset(boxes), tuple(outputs)
        groups: list[list[Step]] = []
        for step in steps:
            if groups and groups[-1][0].static == step.static:
                groups[-1].append(step)
            else:
                groups.append([step])
        self.parts = nn.ModuleList()
        for index, group in enumerate(groups):
            later = {name for rest in groups[index + 1 :] for step in rest for name in step.inputs}
            self.parts.append(Part(group, later | set(outputs)))
        self.eval().requires_grad_(False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(self.inputs, tensors, strict=True))
        for part in self.parts:
            values.update(zip(part.outputs, part(*(values[name] for name in part.inputs)), strict=True))
        return tuple(values[name] for name in self.outputs)


def timed_block(spec: b.Spec, shapes: b.Shapes) -> Timed:
    """One block at these input shapes: inputs as `block_inputs` names them, outputs `out0`, ..."""
    inputs = tuple(block_inputs(spec, shapes))
    outputs = tuple(f"out{index}" for index in range(len(spec.outputs(shapes))))
    boxes = {inputs[index] for index in _coordinates(spec, len(inputs))}
    return Timed([Step(_of_use(spec, _module(spec, shapes), 0), inputs, outputs)], inputs, boxes, outputs)


def timed_network(network: Network) -> Timed:
    """The whole detector on the synthetic scene; inputs and outputs as those of `network_model(network, synthetic_scores=True)`."""
    modules: dict[str, nn.Module] = {}
    steps, inputs, boxes, outputs = [], [IMAGE], set(), list(DETECTIONS)
    for block, use in network.steps:
        if block.name not in modules:
            modules[block.name] = _module(block.spec, use.input_shapes)
        names, scene = list(use.inputs), replaced_inputs(block, use)
        for index, name in scene.items():
            if names[index] not in outputs:
                outputs.append(names[index])
            names[index] = name
        inputs += scene.values()
        boxes |= {names[index] for index in _coordinates(block.spec, len(names)) if index in scene}
        steps.append(Step(_of_use(block.spec, modules[block.name], use.index), tuple(names), use.outputs))
    return Timed(steps, inputs, boxes, outputs)


def _coordinates(spec: b.Spec, inputs: int) -> tuple[int, ...]:
    """Which of a block's inputs are boxes."""
    return (inputs - 1,) if isinstance(spec, b.RoiPool) else (0,) if isinstance(spec, b.Detections | b.Refine) else ()


def _module(spec: b.Spec, shapes: b.Shapes) -> nn.Module:
    if type(spec) in BOX_MODULES:
        return BOX_MODULES[type(spec)](spec, shapes).eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = build_block(spec).eval()
        for child in module.modules():
            scale = getattr(child, "weight", None) if isinstance(child, nn.BatchNorm2d | nn.GroupNorm) else None
            if scale is not None and not scale.any():
                scale.fill_(LAST_SCALE)
        return folded(module)


def _of_use(spec: b.Spec, module: nn.Module, index: int) -> nn.Module:
    """The module at one use of its block; some hold norms for each of them."""
    return fold_batch_norms(module.at(index)) if spec.per_use else module
