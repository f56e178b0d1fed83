"""The oracle: blueprint in, milliseconds with an interval out. Today the plain sum of its measured blocks.

Sum: every use of a block counts at its own input shapes (`Network.prices`). Interval: twice the spread of the sum, taking the
blocks' spreads as independent, and never narrower than FLOOR to either side: a sum of blocks timed alone differs from the whole
network (data left in caches, layouts kept between blocks) by more than timing noise. There is no calibration yet: a later
version of this module corrects the sum by networks measured whole and takes the interval from their residuals.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from fastnas.blueprint import Blueprint
from fastnas.blueprint.blocks import Shapes, Spec
from fastnas.blueprint.expand import Network, expand
from fastnas.errors import InputError
from fastnas.latency.engines import open_engine
from fastnas.latency.table import LatencyTable, default_path
from fastnas.latency.timing import DENSE, GATHER, Mix, Stopwatch, Timing, mix_of
from fastnas.models.onnx import block_inputs, block_model, network_inputs, network_model

FLOOR = 0.10  # see bench/results/oracle-onnxruntime.json for how far sums are off
_REMEMBERED = 100_000  # prices kept in memory

Priced = tuple[Spec, Shapes]


@dataclass(frozen=True)
class Price:
    """Milliseconds of one image: the prediction and an interval around it."""

    engine: str
    predicted: float
    low: float
    high: float

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class BlockPrice:
    """Milliseconds of one block over all its uses."""

    name: str
    ms: float
    count: int  # uses

    def to_dict(self) -> dict:
        return asdict(self)


class Oracle:
    """Prices blueprints with one table and one engine. Use as a context manager; not shared between threads.

    Blocks that the table lacks are measured when they are asked for and stored at once, unless it was opened with
    `measure=False`: then they raise InputError. No price is ever made up.
    """

    def __init__(self, table: LatencyTable, engine: str, measure: bool):
        self.engine = open_engine(engine)
        self.environment = self.engine.environment()
        self.table = table
        self._measures = measure
        self._row = table.environment(self.environment)
        self._stored = table.entries(self._row) if self._row else {}  # by block key
        self._known: dict[Priced, Timing] = {}
        self._prices: dict[Blueprint, Price] = {}
        self._watch: Stopwatch | None = None

    @classmethod
    def open(cls, table: Path | str | None = None, engine: str = "onnxruntime", measure: bool = True) -> "Oracle":
        """table: a file, made where it is missing if `measure` (None: the user's); engine: NAME or NAME:PRECISION.

        Raises InputError: unknown engine; a file that is no latency table, is missing or cannot be created.
        """
        open_engine(engine)  # before a table is made
        opened = LatencyTable(default_path() if table is None else table, writable=measure)
        try:
            return cls(opened, engine, measure)
        except BaseException:
            opened.close()
            raise

    def close(self) -> None:
        self.table.close()

    def __enter__(self) -> "Oracle":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __call__(self, blueprint: Blueprint) -> Price:
        """The price of a blueprint. Raises InputError where a block is missing and may not be measured."""
        price = self._prices.get(blueprint)
        if price is None:
            price = self._sum(expand(blueprint))
            if len(self._prices) >= _REMEMBERED:
                self._prices.clear()
            self._prices[blueprint] = price
        return price

    def forget(self, blueprint: Blueprint) -> None:
        """Drops the remembered price of a blueprint; the next call sums its blocks again."""
        self._prices.pop(blueprint, None)

    def blocks(self, blueprint: Blueprint) -> list[BlockPrice]:
        """What each block contributes; their sum is the prediction."""
        return [
            BlockPrice(
                block.name,
                sum(self._timing((block.spec, use.input_shapes)).median_ms for use in block.uses),
                len(block.uses),
            )
            for block in expand(blueprint).blocks
        ]

    def missing(self, blueprints: Iterable[Blueprint]) -> list[Priced]:
        """The distinct (spec, input shapes) that the table lacks, in the order they come up."""
        wanted = dict.fromkeys(pair for blueprint in blueprints for pair in expand(blueprint).prices())
        return [pair for pair in wanted if self._find(pair) is None]

    def fill(self, blueprints: Iterable[Blueprint], progress: Callable[[int, int, Priced], None] | None = None) -> int:
        """Measures what is missing; returns how many. `progress(done, total, pair)` is called before each."""
        missing = self.missing(blueprints)
        for done, pair in enumerate(missing):
            if progress:
                progress(done, len(missing), pair)
            self._timing(pair)
        return len(missing)

    def entries(self) -> int:
        """How many blocks the table holds for this environment."""
        return len(self.table.entries(self._row)) if self._row else 0

    def measure_whole(self, blueprint: Blueprint) -> Timing:
        """Times the whole network on the synthetic scene. Nothing is stored."""
        network = expand(blueprint)
        model = network_model(network, synthetic_scores=True)
        runner = self.engine.prepare(model, network_inputs(network))
        return self._stopwatch().measure(runner.run, self._mix(network), budget_s=0.5, alone=True)

    def _mix(self, network: Network) -> Mix:
        """Milliseconds that a whole network spends with each reference, as far as its blocks are known."""
        mix: Counter[str] = Counter()
        for pair, uses in network.prices().items():
            if timing := self._find(pair):
                for name, share in mix_of(pair[0]).items():
                    mix[name] += uses * timing.median_ms * share
        return mix or {DENSE: 0.5, GATHER: 0.5}

    def _sum(self, network: Network) -> Price:
        total = variance = 0.0
        for pair, uses in network.prices().items():
            timing = self._timing(pair)
            total += uses * timing.median_ms
            variance += (uses * timing.median_ms * timing.spread) ** 2
        margin = max(2 * math.sqrt(variance), FLOOR * total)
        return Price(self.engine.name, total, max(total - margin, 0.0), total + margin)

    def _timing(self, pair: Priced) -> Timing:
        found = self._find(pair)
        if found is not None:
            return found
        spec, shapes = pair
        if not self._measures:
            sizes = ", ".join("x".join(map(str, shape)) for shape in shapes)
            raise InputError(
                f"the latency table {self.table.path} lacks {spec} at {sizes} for this machine and {self.engine.name}"
                " (measure it with: fastnas bench-latency BLUEPRINT)"
            )
        watch = self._stopwatch()
        runner = self.engine.prepare(block_model(spec, shapes), block_inputs(spec, shapes))
        timing = watch.measure(runner.run, mix_of(spec))
        self.table.put(self._row, spec.key(shapes), timing)
        self._known[pair] = timing
        return timing

    def _find(self, pair: Priced) -> Timing | None:
        """From memory, else from the table (another process may have measured it since it was opened)."""
        timing = self._known.get(pair)
        if timing is None:
            key = pair[0].key(pair[1])
            timing = self._stored.get(key)
            if timing is None and self._row:
                timing = self.table.get(self._row, key)
            if timing is not None:
                self._known[pair] = timing
        return timing

    def _stopwatch(self) -> Stopwatch:
        if self._watch is None:
            self._row = self._row or self.table.environment(self.environment)
            self._watch = Stopwatch(self.engine, self._row.baselines if self._row else None)
            if self._row is None and self._measures:
                self._row = self.table.add_environment(self.environment, self._watch.baselines)
                self._watch.baselines = self._row.baselines
        return self._watch
