"""What the oracle answers: a price, and why there is none."""

from dataclasses import asdict, dataclass

from fastnas.errors import FastnasError, InputError


class Unpriceable(FastnasError):
    """A blueprint has no price: the engine cannot run one of its blocks, which the table then says."""


class Lacking(Unpriceable, InputError):
    """A block is missing in the table, and can neither be measured nor estimated."""


@dataclass(frozen=True)
class Price:
    """Milliseconds of one image: the prediction and an interval around it.

    interpolated, modelled: shares of the prediction that come from neighbouring entries and from a model; the rest was measured.
    """

    engine: str
    predicted: float
    low: float
    high: float
    interpolated: float = 0.0
    modelled: float = 0.0

    @property
    def measured(self) -> float:
        return max(0.0, round(1.0 - self.interpolated - self.modelled, 12))

    def to_dict(self) -> dict:
        return {**asdict(self), "measured": self.measured}


@dataclass(frozen=True)
class BlockPrice:
    """Milliseconds of one block over all its uses."""

    name: str
    ms: float
    count: int  # uses

    def to_dict(self) -> dict:
        return asdict(self)
