"""Two-stage detectors (Faster R-CNN, Ren et al. 2015): proposals from dense maps, then a head on the regions, in stages."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastnas.blueprint import Network
from fastnas.blueprint import blocks as spec
from fastnas.blueprint.wiring import Block, Use
from fastnas.models.boxes import select_detections
from fastnas.models.detector import Detector
from fastnas.models.proposals import RpnOutputs, make_anchors, read_maps, select_proposals


class TwoStageDetector(Detector):
    """Training calls `dense`, `rpn_outputs`, and `stage` for each of the `stages`."""

    dense_until = spec.PROPOSERS

    def __init__(self, network: Network):
        super().__init__(network)
        self._selection, *later = self._later_steps
        *region_steps, (_, self._found) = later
        self._suppression = network.spec(spec.Detections)
        self.stages = _stages(region_steps)

    @property
    def proposals(self) -> spec.Proposer:
        return self._selection[0].spec

    @property
    def score_maps(self) -> tuple[str, ...]:
        """Names of one map of every level that has the size of the others."""
        return self._selection[1].inputs[: len(self.proposals.strides)]

    def rpn_outputs(self, values: dict[str, Tensor]) -> RpnOutputs:
        """What the region proposal network says of every anchor."""
        maps = [values[name] for name in self._selection[1].inputs]
        return read_maps(self.proposals, maps, self.anchors(maps[: len(self.score_maps)]))

    def stage(self, values: dict[str, Tensor], stage: "RegionStage", boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (K, classes + 1), box deltas (K, 4 D), and the regions (K, 5) of the next stage, which
        are the given ones after the last. boxes (K, 5): image index and box. values: as returned by `dense`; what the stage
        computes is added to it."""
        values[stage.boxes] = boxes
        self._run(stage.steps, values)
        return values[stage.logits], values[stage.deltas], values[stage.refined]

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        values = self.dense(images)
        boxes = rows(select_proposals(self.proposals, self.rpn_outputs(values)))
        for stage in self.stages:
            _, _, boxes = self.stage(values, stage, boxes)
        regions, *logits, deltas = (values[name] for name in self._found.inputs)
        return select_detections(self._suppression, regions, logits, deltas, len(images))

    def _make_anchors(self, maps: list[tuple[int, int]]) -> list[Tensor]:
        return make_anchors(self.proposals, maps)


@dataclass(frozen=True)
class RegionStage:
    """Steps of one stage and the names of the values that it reads and writes."""

    steps: tuple[tuple[Block, Use], ...]
    boxes: str
    logits: str
    deltas: str
    refined: str  # the next stage's boxes; of the last stage its own


def _stages(steps: list[tuple[Block, Use]]) -> list[RegionStage]:
    starts = [index for index, (block, _) in enumerate(steps) if isinstance(block.spec, spec.RoiPool)]
    stages = []
    for start, end in zip(starts, [*starts[1:], len(steps)], strict=True):
        own = steps[start:end]
        boxes = own[0][1].inputs[-1]
        head = next(use for block, use in own if isinstance(block.spec, spec.BoxHead | spec.RegionPredictor))
        last, use = own[-1]
        refined = use.outputs[0] if isinstance(last.spec, spec.Refine) else boxes
        stages.append(RegionStage(tuple(own), boxes, *head.outputs, refined))
    return stages


def rows(boxes: list[Tensor]) -> Tensor:
    """Boxes (n, 4) of every image -> (K, 5) with the image index first."""
    return torch.cat([nn.functional.pad(own, (1, 0), value=float(index)) for index, own in enumerate(boxes)])
