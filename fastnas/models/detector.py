"""Blueprint -> detector: an nn.Module that walks the same blocks that are counted and priced."""

import torch
from torch import Tensor, nn

from fastnas.blueprint import Blueprint, Network, expand
from fastnas.blueprint import blocks as spec
from fastnas.blueprint.wiring import BOXES, IMAGE
from fastnas.models import boxes as box
from fastnas.models.blocks import build_block

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, so that pretrained backbones fit
STD = (0.229, 0.224, 0.225)


def build(blueprint: Blueprint) -> "Detector":
    """The detector of a blueprint with fresh weights (use `torch.device("meta")` as context for none)."""
    return Detector(expand(blueprint))


class Detector(nn.Module):
    """Runs the steps of a network. `forward` detects; training calls `dense`, `propose` and `regions` one after the other.

    Values are kept by name in a dict, as in `Network.steps`; `blocks` maps a block's name to its module.
    """

    def __init__(self, network: Network):
        super().__init__()
        self.network = network
        for block in network.blocks:
            module = build_block(block.spec)
            if module is not None:
                _attach(self, block.name, module)
        kinds = [type(block.spec) for block, _ in network.steps]
        cut = kinds.index(spec.Proposals)
        self._dense_steps = network.steps[:cut]
        self._region_steps = [step for step in network.steps[cut + 1 :] if not isinstance(step[0].spec, spec.Detections)]
        self._selection = network.steps[cut]
        self._suppression = network.spec(spec.Detections)
        self._anchors: list[Tensor] | None = None

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Modules by block name (blocks without weights have none)."""
        return {block.name: self.get_submodule(block.name) for block in self.network.blocks if _has(self, block.name)}

    @property
    def proposals(self) -> spec.Proposals:
        return self._selection[0].spec

    def dense(self, images: Tensor) -> dict[str, Tensor]:
        """Everything before proposal selection on normalized images (N, 3, H, W) of the blueprint's input size."""
        if tuple(images.shape[-2:]) != self.network.blueprint.input:
            size = "x".join(map(str, images.shape[-2:]))
            raise ValueError(f"images of {size} do not fit the blueprint {self.network.blueprint.text}: resize them")
        values = {IMAGE: images}
        self._run(self._dense_steps, values)
        return values

    def rpn_outputs(self, values: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Objectness (N, n_l), deltas (N, n_l, 4) and anchors (n_l, 4) of every level, float32."""
        names = self._selection[1].inputs
        maps = [values[name] for name in names]
        scores, deltas = maps[: len(maps) // 2], maps[len(maps) // 2 :]
        if self._anchors is None:
            self._anchors = box.make_anchors(self.proposals, [tuple(score.shape[-2:]) for score in scores])
        return *box.flatten_maps(scores, deltas), [anchors.to(maps[0].device) for anchors in self._anchors]

    def regions(self, values: dict[str, Tensor], proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (K, classes + 1) and box deltas (K, 4 (classes + 1)) of the boxes of all images, in order."""
        rows = [nn.functional.pad(boxes, (1, 0), value=float(index)) for index, boxes in enumerate(proposals)]
        values = {**values, BOXES: torch.cat(rows)}
        self._run(self._region_steps, values)
        logits, deltas = self._region_steps[-1][1].outputs
        return values[logits], values[deltas]

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Detections of normalized images (N, 3, H, W): per image boxes (D, 4), scores (D,), labels (D,) from 1."""
        values = self.dense(images)
        scores, deltas, anchors = self.rpn_outputs(values)
        proposals = box.select_proposals(self.proposals, scores, deltas, anchors)
        logits, deltas = self.regions(values, proposals)
        return box.select_detections(self._suppression, proposals, logits, deltas)

    def _run(self, steps, values: dict[str, Tensor]) -> None:
        for block, use in steps:
            results = self.get_submodule(block.name)(*(values[name] for name in use.inputs))
            values.update(zip(use.outputs, results if isinstance(results, tuple) else (results,), strict=True))


def _attach(root: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` at a dotted name, so that state-dict keys start with the block's name."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, module)


def _has(root: nn.Module, name: str) -> bool:
    for part in name.split("."):
        if part not in root._modules:
            return False
        root = root._modules[part]
    return True
