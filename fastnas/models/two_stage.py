"""Two-stage detectors (Faster R-CNN, Ren et al. 2015): proposals from dense maps, then a head on the regions."""

import torch
from torch import Tensor, nn

from fastnas.blueprint import Network
from fastnas.blueprint import blocks as spec
from fastnas.blueprint.wiring import BOXES
from fastnas.models import boxes as box
from fastnas.models.detector import Detector


class TwoStageDetector(Detector):
    """Training calls `dense`, `rpn_outputs` and `regions` one after the other."""

    dense_until = spec.Proposals

    def __init__(self, network: Network):
        super().__init__(network)
        self._selection, *later = self._later_steps
        self._region_steps = [step for step in later if not isinstance(step[0].spec, spec.Detections)]
        self._suppression = network.spec(spec.Detections)

    @property
    def proposals(self) -> spec.Proposals:
        return self._selection[0].spec

    def rpn_outputs(self, values: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Objectness (N, n_l), deltas (N, n_l, 4) and anchors (n_l, 4) of every level, float32."""
        maps = [values[name] for name in self._selection[1].inputs]
        scores, deltas = maps[: len(maps) // 2], maps[len(maps) // 2 :]
        return *box.flatten_maps(scores, deltas), self.anchors(scores)

    def regions(self, values: dict[str, Tensor], proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (K, classes + 1) and box deltas (K, 4 (classes + 1)) of the boxes of all images, in order."""
        rows = [nn.functional.pad(boxes, (1, 0), value=float(index)) for index, boxes in enumerate(proposals)]
        values = {**values, BOXES: torch.cat(rows)}
        self._run(self._region_steps, values)
        logits, deltas = self._region_steps[-1][1].outputs
        return values[logits], values[deltas]

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        values = self.dense(images)
        scores, deltas, anchors = self.rpn_outputs(values)
        proposals = box.select_proposals(self.proposals, scores, deltas, anchors)
        logits, deltas = self.regions(values, proposals)
        return box.select_detections(self._suppression, proposals, logits, deltas)

    def _make_anchors(self, maps: list[tuple[int, int]]) -> list[Tensor]:
        return box.make_anchors(self.proposals, maps)
