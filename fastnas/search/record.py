"""What a study knows about one candidate."""

import math
from dataclasses import dataclass, field

from fastnas.blueprint import Blueprint, Lineage

STATES = WAITING, RUNNING, FINISHED, FAILED, REJECTED = "waiting", "running", "finished", "failed", "rejected"


@dataclass(frozen=True)
class Final:
    """The full training of a member of the front, and its whole-network measurement.

    metrics: COCO's twelve numbers by pycocotools; weights: path relative to the study; epochs: of this training alone;
    latency_ms: None where the engine's device is not here, so that nothing can be timed.
    """

    ap: float
    ap50: float
    metrics: dict[str, float]
    latency_ms: float | None
    epochs: float
    seconds: float
    weights: str


@dataclass(frozen=True)
class Record:
    """One candidate of a study. Times in seconds, latencies in milliseconds, AP from 0 to 1.

    state: waiting | running | finished | failed (see `reason`) | rejected (over a limit, never trained; see `reason`).
    epochs: of its own search training; total_epochs: with those of the ancestors whose weights it inherited.
    predicted_ms, low_ms, high_ms: NaN where the engine cannot run one of its blocks (then it is rejected).
    """

    id: int
    blueprint: Blueprint
    lineage: Lineage
    state: str
    params: int
    macs: int
    predicted_ms: float
    low_ms: float
    high_ms: float
    ap: float | None = None
    ap50: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    epochs: float = 0.0
    total_epochs: float = 0.0
    seconds: float = 0.0
    reason: str = ""
    weights: str = ""  # relative to the study
    final: Final | None = None

    @property
    def latency_ms(self) -> float:
        """Measured whole in the end, else predicted."""
        return self.predicted_ms if self.final is None or self.final.latency_ms is None else self.final.latency_ms

    @property
    def objectives(self) -> tuple[float, float]:
        """What the search minimizes: (1 - AP, predicted milliseconds)."""
        return (1 - self.ap if self.ap is not None else math.inf, self.predicted_ms)
