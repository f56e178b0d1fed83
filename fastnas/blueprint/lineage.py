"""Lineage: where a candidate's blocks come from. Weights are inherited by this map, never guessed from names or strings."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Lineage:
    """parent: id of the parent candidate (None for the ancestor of a study).

    operations: what was done to the parent, in order, for people (`expand stage 2 after block 1`).
    blocks: name of every block of the child that has an origin -> name of the parent's block; the others are new.
    """

    parent: int | None = None
    operations: tuple[str, ...] = ()
    blocks: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict:
        return {"parent": self.parent, "operations": list(self.operations), "blocks": dict(self.blocks)}

    @staticmethod
    def from_dict(data: dict) -> "Lineage":
        return Lineage(data["parent"], tuple(data["operations"]), dict(data["blocks"]))
