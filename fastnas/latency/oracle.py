"""The oracle: blueprint in, milliseconds with an interval out: the calibrated sum of its measured blocks.

Sum: every use of a block counts at its own input shapes (`Network.prices`). A table that holds networks measured whole corrects
the sum and takes the interval from their residuals (`calibration.py`). Without them the sum stands as it is, and its interval is
twice the spread of the sum, taking the blocks' spreads as independent, and never narrower than FLOOR to either side: a sum of
blocks timed alone differs from the whole network (data left in caches, layouts kept between blocks) by more than timing noise.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastnas.blueprint import Blueprint
from fastnas.blueprint.blocks import Shapes, Spec
from fastnas.blueprint.expand import Network, expand
from fastnas.errors import InputError
from fastnas.latency.calibration import MOST, TOO_FAR, Calibration, calibration_of, spread_out
from fastnas.latency.engines import open_engine
from fastnas.latency.table import Environment, LatencyTable, default_path
from fastnas.latency.timing import DENSE, GATHER, QUIET_AGAIN_S, REFERENCES, Mix, Stopwatch, Timing, lowered, mix_of
from fastnas.models.workload import BlockWorkload, NetworkWorkload

FLOOR = 0.10  # see bench/results/oracle-onnxruntime.json for how far sums are off
_REMEMBERED = 100_000  # prices kept in memory
_TOGETHER = 8  # networks in memory at the same time, timed in interleaved rounds

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

    Opened for measuring, it first times the references again: a table that was made on a busy machine is corrected (`note` then
    says by how much). A table opened with `measure=False` is left as it is.
    """

    def __init__(self, table: LatencyTable, engine: str, measure: bool):
        self.engine = open_engine(engine)
        self.environment = self.engine.environment()
        self.table = table
        self._measures = measure
        self.note: str | None = None
        self._watch: Stopwatch | None = None
        self._adopted = 0
        self._adopt(table.environment(self.environment))
        if self._row and measure:
            self._stopwatch()

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
            network, adopted = expand(blueprint), None
            while adopted != self._adopted:  # never a sum of entries from before and after a correction
                adopted, price = self._adopted, self._price(network)
            if len(self._prices) >= _REMEMBERED:
                self._prices.clear()
            self._prices[blueprint] = price
        return price

    def forget(self, blueprint: Blueprint) -> None:
        """Drops the remembered price of a blueprint; the next call sums its blocks again."""
        self._prices.pop(blueprint, None)

    def blocks(self, blueprint: Blueprint) -> list[BlockPrice]:
        """What each block contributes; their sum, corrected by the calibration, is the prediction."""
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
        return [pair for pair in wanted if self.find(pair) is None]

    def fill(self, blueprints: Iterable[Blueprint], progress: Callable[[int, int, Priced], None] | None = None) -> int:
        """Measures what is missing; returns how many. `progress(done, total, pair)` is called before each."""
        missing = self.missing(blueprints)
        for done, pair in enumerate(missing):
            if progress:
                progress(done, len(missing), pair)
            self._timing(pair)
        return len(missing)

    @property
    def calibration(self) -> Calibration | None:
        """The line through the networks that the table holds, as far as their blocks are known; None: too few of them.

        One whose error is above TOO_FAR is not used for prices: then a line does not describe this device.
        """
        while self._calibration is None:
            adopted = self._adopted
            found = calibration_of(self.table.networks(self._row) if self._row else {}, self.find)
            if adopted == self._adopted:  # never a line through sums from before a correction
                self._calibration = (found,)
        return self._calibration[0]

    @property
    def usable_calibration(self) -> Calibration | None:
        """The calibration where prices follow it."""
        found = self.calibration
        return found if found and found.error <= TOO_FAR else None

    def calibration_note(self) -> str:
        """One line that says what stands behind the prices."""
        found = self.calibration
        if found is None:
            return "not calibrated: prices are sums of blocks (calibrate with: fastnas bench-latency --space NAME)"
        if self.usable_calibration is None:
            return (
                f"the calibration is not used: its {found.networks} networks are {100 * found.error:.0f} % off a line"
                " (measure again on a quieter machine, with another --table)"
            )
        return f"calibrated on {found.networks} networks, mean error {100 * found.error:.1f} %"

    def calibrated(self) -> set[str]:
        """Texts of the networks that the calibration is made of."""
        return set(self.table.networks(self._row)) if self._row else set()

    def calibrate(
        self, blueprints: Sequence[Blueprint], most: int = MOST, progress: Callable[[int, int], None] | None = None
    ) -> Calibration | None:
        """Measures up to `most` of `blueprints` whole, chosen to span their range, and stores them; prices follow from then on.

        Fills in missing blocks first. `progress(done, total)` is called before each group of networks.
        """
        self.fill(blueprints)
        sums = [self._total(expand(blueprint))[0] for blueprint in blueprints]
        chosen = [blueprints[index] for index in spread_out(sums, most)]
        for index in range(0, len(chosen), _TOGETHER):
            group = chosen[index : index + _TOGETHER]
            if progress:
                progress(index, len(chosen))
            stored = False
            while not stored:  # another process corrected the table meanwhile: measured against the old baselines
                timings = self.measure_whole_all(group)
                mixes = [self._mix(expand(blueprint)) for blueprint in group]
                rows = zip(group, timings, mixes, strict=True)
                stored = all(self.table.put_network(self._row, b.text, timing, mix) for b, timing, mix in rows)
                if not stored:
                    self._adopt(self.table.environment(self.environment))
        self._calibration = None
        self._prices.clear()
        return self.calibration

    def timing(self, pair: Priced) -> Timing:
        """The timing of a block or a single layer, measured and stored where the table lacks it. Raises what a call raises."""
        return self._timing(pair)

    def entries(self) -> int:
        """How many blocks the table holds for this environment."""
        return len(self.table.entries(self._row)) if self._row else 0

    def measure_whole(self, blueprint: Blueprint) -> Timing:
        """Times the whole network on the synthetic scene. Nothing is stored."""
        return self.measure_whole_all([blueprint])[0]

    def measure_whole_all(self, blueprints: Sequence[Blueprint]) -> list[Timing]:
        """Times whole networks to compare them: in interleaved rounds (A B C A B C ...), so that slow changes meet all alike.

        All of them are in memory at the same time.
        """
        networks = [expand(blueprint) for blueprint in blueprints]
        runs = [self.engine.prepare(NetworkWorkload(n)).run for n in networks]
        return self._stopwatch().measure_whole([(run, self._mix(n)) for run, n in zip(runs, networks, strict=True)])

    def _mix(self, network: Network) -> Mix:
        """Milliseconds that a whole network spends with each reference, as far as its blocks are known."""
        mix: Counter[str] = Counter()
        for pair, uses in network.prices().items():
            if timing := self.find(pair):
                for name, share in mix_of(pair[0]).items():
                    mix[name] += uses * timing.median_ms * share
        return mix or {DENSE: 0.5, GATHER: 0.5}

    def _price(self, network: Network) -> Price:
        total, variance = self._total(network)
        if calibration := self.usable_calibration:
            return Price(self.engine.name, *calibration(total))
        margin = max(2 * math.sqrt(variance), FLOOR * total)
        return Price(self.engine.name, total, max(total - margin, 0.0), total + margin)

    def _total(self, network: Network) -> tuple[float, float]:
        """The sum of the blocks in milliseconds, and its variance."""
        total = variance = 0.0
        for pair, uses in network.prices().items():
            timing = self._timing(pair)
            total += uses * timing.median_ms
            variance += (uses * timing.median_ms * timing.spread) ** 2
        return total, variance

    def _timing(self, pair: Priced) -> Timing:
        found = self.find(pair)
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
        runner = self.engine.prepare(BlockWorkload(spec, shapes))
        timing = watch.measure(runner.run, mix_of(spec))
        while not self.table.put(self._row, spec.key(shapes), timing):  # another process corrected the table meanwhile
            self._adopt(self.table.environment(self.environment))
            timing = watch.measure(runner.run, mix_of(spec))
        self._known[pair] = timing
        return timing

    def find(self, pair: Priced) -> Timing | None:
        """What the table holds of a block; None: nothing. Another process may have measured it since the table was opened."""
        timing = self._known.get(pair)
        if timing is None:
            key = pair[0].key(pair[1])
            timing = self._stored.get(key)
            if timing is None and self._row:
                row = self.table.environment(self.environment)
                if row != self._row:  # another process corrected the table
                    self._adopt(row)
                timing = self.table.get(self._row, key)
            if timing is not None:
                self._known[pair] = timing
        return timing

    def _adopt(self, row: Environment | None) -> None:
        """Goes on with this environment and its entries, and forgets all that was known before."""
        if row and set(row.baselines) != set(REFERENCES):
            raise self.table.damaged(f"baselines are {row.stored!r}")
        self._row = row
        self._stored = self.table.entries(row) if row else {}  # by block key
        self._known: dict[Priced, Timing] = {}
        self._prices: dict[Blueprint, Price] = {}
        self._calibration: tuple[Calibration | None] | None = None  # None: not computed yet
        self._adopted += 1
        if row and self._watch:
            self._watch.baselines = row.baselines

    def _stopwatch(self) -> Stopwatch:
        if self._watch is None:
            if self._row is None:
                self._adopt(self.table.environment(self.environment))
            self._watch = Stopwatch(self.engine, self._row.baselines if self._row else None)
            if self._row:
                self._check_baselines(self._row, self._watch)
            elif self._measures:
                self._adopt(self.table.add_environment(self.environment, self._watch.baselines))
        return self._watch

    def _check_baselines(self, row: Environment, watch: Stopwatch) -> None:
        """Corrects baselines that were taken on a busy machine, in the table too where it may be written."""
        measured = watch.quiet(QUIET_AGAIN_S)
        baselines = lowered(row.baselines, measured)
        if baselines == row.baselines:
            return
        if self._measures:
            self._adopt(self.table.lower_baselines(row, measured))
        else:
            watch.baselines = baselines
        factors = ", ".join(f"{name} x{baselines[name] / old:.2f}" for name, old in row.baselines.items() if baselines[name] != old)
        done = "its entries are corrected" if self._measures else "its entries are left as they are"
        self.note = f"{self.table.path} was made on a busy machine: {done} ({factors})"
