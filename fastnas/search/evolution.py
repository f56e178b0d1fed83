"""The strategy of all spaces: grow from the ancestor, parents from the Pareto front. Sees records, never torch."""

import numpy as np

from fastnas.blueprint import Blueprint, Lineage
from fastnas.search.pareto import pareto_front
from fastnas.search.record import FINISHED, Record
from fastnas.spaces import Space

TRIES = 200


class Evolution:
    """Asks are a pure function of (seed, records): a study that was killed goes on with the candidates it would have had."""

    def __init__(self, space: Space, seed: int):
        self.space, self.seed = space, seed

    def ask(self, records: list[Record]) -> tuple[Blueprint, Lineage] | None:
        """The next candidate, different from all in `records`; None when no new one is found around the front."""
        if not records:
            return self.space.ancestor, Lineage()
        parents = pareto_front([record for record in records if record.state == FINISHED], lambda record: record.objectives)
        if not parents:
            return None
        rng = np.random.default_rng([self.seed, len(records)])
        known = {record.blueprint.text for record in records}
        children = [sum(record.lineage.parent == parent.id for record in records) for parent in parents]
        weights = 1 / (1 + np.array(children))  # parents with fewer children first
        for _ in range(TRIES):
            parent = parents[rng.choice(len(parents), p=weights / weights.sum())]
            others = [record for record in parents if record.id != parent.id]
            if others and self.space.p_cross and rng.random() < self.space.p_cross:
                other = others[rng.integers(len(others))]
                child, done = self.space.cross(parent.blueprint, other.blueprint, rng), (f"cross with candidate {other.id}",)
            else:
                child, done = self.space.mutate(parent.blueprint, rng), ()
            if child and child.blueprint.text not in known:
                return child.blueprint, Lineage(parent.id, (*done, *child.operations), child.blocks)
        return None
