"""Which candidates of a study are on the front: during the search, for the full training, and at the end."""

import math
from collections.abc import Iterable

from fastnas.search.pareto import pareto_front, spread
from fastnas.search.record import FINISHED, Record


def search_front(records: Iterable[Record]) -> list[Record]:
    """Finished candidates that no other dominates in search-time AP and predicted latency, fastest first."""
    scored = [r for r in records if r.state == FINISHED and all(map(math.isfinite, r.objectives))]
    front = pareto_front(scored, lambda r: r.objectives)
    return sorted(front, key=lambda r: (r.predicted_ms, r.id))


def finalists(records: list[Record], count: int) -> list[Record]:
    """`count` descendants on the front that get the full training, and the ancestor as the yardstick they are compared with."""
    ancestor = [r for r in records if r.lineage.parent is None and r.state == FINISHED]
    children = [r for r in search_front(records) if r.lineage.parent is not None]
    return spread(children, count, lambda r: r.objectives) + ancestor


def final_front(records: Iterable[Record]) -> list[Record]:
    """Fully trained candidates that no other dominates in final AP and whole-network latency, fastest first.

    On a device that is not here the predicted latency stands for the measured one, of all of them. Only those that have seen the
    most epochs are compared: a resumed study may hold shorter full trainings.
    """
    finals = [r for r in records if r.final]
    most = max((r.total_epochs + r.final.epochs for r in finals), default=0)
    finals = [r for r in finals if math.isclose(r.total_epochs + r.final.epochs, most)]
    front = pareto_front(finals, lambda r: (1 - r.final.ap, r.latency_ms))
    return sorted(front, key=lambda r: (r.latency_ms, r.id))


def pareto_entries(records: list[Record]) -> list[dict]:
    """The content of pareto.json, fastest first; `ap` and `weights` are those of the full training.

    `latency_ms` is None where the device is not here: nothing could be measured, and `predicted_ms` is all that is known.
    """
    return [
        {
            "id": record.id,
            "text": record.blueprint.text,
            "blueprint": record.blueprint.to_dict(),
            "ap": record.final.ap,
            "ap50": record.final.ap50,
            "latency_ms": record.final.latency_ms,
            "predicted_ms": record.predicted_ms,
            "params": record.params,
            "macs": record.macs,
            "weights": record.final.weights,
        }
        for record in final_front(records)
    ]
