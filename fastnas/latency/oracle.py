"""The oracle: blueprint in, milliseconds with an interval out: the calibrated sum of its measured blocks.

Sum: every use of a block counts at its own input shapes (`Network.prices`). A table that holds networks measured whole corrects
the sum and takes the interval from their residuals (`calibration.py`). Without them the sum stands as it is, and its interval is
twice the spread of the sum, taking the blocks' spreads as independent, and never narrower than FLOOR to either side: a sum of
blocks timed alone differs from the whole network (data left in caches, layouts kept between blocks) by more than timing noise.

Where nothing may be measured, a block that the table lacks is estimated: from measured blocks of its kind (`measure=False`; see
`neighbours.py`), or on a device whose single layers were imported (`recorded.py`) as the sum of its layers (`operators.py`). A
Price says which share of it is measured, interpolated and modelled.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fastnas.blueprint import Blueprint
from fastnas.blueprint.blocks import Shapes, Spec
from fastnas.blueprint.expand import Network, expand
from fastnas.errors import FastnasError, InputError
from fastnas.latency.calibration import MOST, TOO_FAR, Calibration, Parts, calibration_of, informative, parts_of
from fastnas.latency.engines import Engine, Runner, cannot_run, open_engine
from fastnas.latency.estimate import QUANTILE, SHARES, Estimate
from fastnas.latency.neighbours import Neighbours
from fastnas.latency.operators import OperatorPrices
from fastnas.latency.price import BlockPrice, Lacking, Price, Unpriceable
from fastnas.latency.recorded import Recorded, choose_engine
from fastnas.latency.table import Environment, LatencyTable, default_path
from fastnas.latency.timing import DENSE, GATHER, QUIET_AGAIN_S, REFERENCES, Mix, Stopwatch, Timing, lowered, mix_of
from fastnas.models.workload import BlockWorkload, NetworkWorkload

FLOOR = 0.10  # see bench/results/oracle-onnxruntime.json for how far sums are off
LAYERS_FLOOR = 0.28  # of sums of single layers: ten engines that NVIDIA published take 1/1.38 to 1/1.02 of the sum of their layers
_REMEMBERED = 100_000  # prices kept in memory
_TOGETHER = 8  # networks in memory at the same time, timed in interleaved rounds

Priced = tuple[Spec, Shapes]


class Oracle:
    """Prices blueprints with one table and one engine. Use as a context manager; not shared between threads.

    Blocks that the table lacks are measured when they are asked for and stored at once. Where that may not be, they are estimated
    from what the table holds, and raise Lacking where that says too little. No price is ever made up. A block that the engine
    cannot run is recorded with the engine's own words and raises Unpriceable from then on; `fill` tries it again.

    Opened for measuring, it first times the references again: a table that was made on a busy machine is corrected (`note` then
    says by how much). A table opened with `measure=False` is left as it is.
    """

    def __init__(self, table: LatencyTable, engine: Engine, measure: bool):
        self.engine = engine
        self.environment = self.engine.environment()
        self.table = table
        self._measures = measure and self.runs_here
        self.note: str | None = None
        self._watch: Stopwatch | None = None
        self._adopted = 0
        self._adopt(table.environment(self.environment))
        if self._row and self._measures:
            self._stopwatch()

    @classmethod
    def open(
        cls, table: Path | str | None = None, engine: str = "onnxruntime", measure: bool = True, device: str | None = None
    ) -> "Oracle":
        """table: a file, made where it is missing if `measure` (None: the user's); engine: NAME or NAME:PRECISION.

        device: the one of the table's environments to price (None: this machine's, or the table's only one; see `recorded.py`).
        Raises InputError: unknown engine; a file that is no latency table, is missing or cannot be created; no such device.
        FastnasError: the engine cannot run here, and the table knows nothing of it.
        """
        path = Path(default_path() if table is None else table)
        chosen = choose_engine(path, engine, device, open_engine)  # before a table is made
        opened = LatencyTable(path, writable=measure and not isinstance(chosen, Recorded))
        try:
            return cls(opened, chosen, measure)
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
        """The price of a blueprint. Raises Unpriceable where the engine cannot run a block, Lacking (InputError) where one is
        missing and can neither be measured nor estimated."""
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
        return [pair for pair in wanted if self.entry(pair) is None]

    def fill(self, blueprints: Iterable[Blueprint], progress: Callable[[int, int, Priced], None] | None = None) -> int:
        """Measures what is missing; returns how many. `progress(done, total, pair)` is called before each.

        What the engine cannot run is recorded in the table and left out. Where nothing may be measured, nothing happens.
        """
        missing, measured = self.missing(blueprints) if self._measures else [], 0
        for done, pair in enumerate(missing):
            if progress:
                progress(done, len(missing), pair)
            with contextlib.suppress(Unpriceable):
                self._measure(pair)
                measured += 1
        return measured

    def priceable(self, blueprints: Iterable[Blueprint]) -> list[Blueprint]:
        """Those without a block that the engine is known to fail at."""
        failing = set(self._failures)
        return [b for b in blueprints if not failing or failing.isdisjoint(spec.key(s) for spec, s in expand(b).prices())]

    @property
    def calibration(self) -> Calibration | None:
        """The fit to the networks that the table holds, as far as their blocks are known; None: too few of them.

        One whose error is above TOO_FAR is not used for prices: then sums of blocks do not describe this device.
        """
        while self._calibration is None:
            adopted = self._adopted
            found = calibration_of(self.table.networks(self._row) if self._row else {}, self.entry)
            if adopted == self._adopted:  # never a fit to sums from before a correction
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
        if not self.runs_here:
            return f"not calibrated: {self.environment['device']} is not here, prices are sums of layers"
        if found is None:
            return "not calibrated: prices are sums of blocks (calibrate with: fastnas bench-latency --space NAME)"
        if self.usable_calibration is None:
            return (
                f"the calibration is not used: its {found.networks} networks are {100 * found.error:.0f} % off any such sum"
                " (measure again on a quieter machine, with another --table)"
            )
        return f"calibrated on {found.networks} networks, mean error {100 * found.error:.1f} %"

    def calibrated(self) -> set[str]:
        """Texts of the networks that the calibration is made of."""
        return set(self.table.networks(self._row)) if self._row else set()

    def calibrate(
        self, blueprints: Sequence[Blueprint], most: int = MOST, progress: Callable[[int, int], None] | None = None
    ) -> Calibration | None:
        """Measures up to `most` of `blueprints` whole, those that tell most about the fit, and stores them; prices follow it then.

        Fills in missing blocks first. `progress(done, total)` is called before each group of networks.
        """
        self.fill(blueprints)
        blueprints = self.priceable(blueprints)
        chosen = [blueprints[index] for index in informative([self.parts(b) for b in blueprints], most)]
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

    def parts(self, blueprint: Blueprint) -> Parts:
        """What the calibration corrects: the milliseconds of the blocks by kind. Raises what a call raises."""
        return parts_of(expand(blueprint), self._timing)

    def timing(self, pair: Priced) -> Timing:
        """The timing of a block or a single layer, measured and stored where the table lacks it. Raises what a call raises."""
        return self._timing(pair)

    def entries(self) -> int:
        """How many blocks the table holds for this environment."""
        return self.table.count(self._row) if self._row else 0

    @property
    def runs_here(self) -> bool:
        """Whether whole networks can be timed: the engine is one of this machine's."""
        return not isinstance(self.engine, Recorded)

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
            if timing := self.entry(pair):
                for name, share in mix_of(pair[0]).items():
                    mix[name] += uses * timing.median_ms * share
        return mix or {DENSE: 0.5, GATHER: 0.5}

    def _price(self, network: Network) -> Price:
        blocks = [(self._timing(pair), uses) for pair, uses in network.prices().items()]
        total = sum(uses * timing.median_ms for timing, uses in blocks)
        guessed = [(timing, uses) for timing, uses in blocks if isinstance(timing, Estimate)]
        doubt, interpolated, modelled = (
            sum(uses * timing.median_ms * getattr(timing, what) for timing, uses in guessed) / total for what in SHARES
        )
        if calibration := self.usable_calibration:
            predicted, low, high = calibration(parts_of(network, self._timing))
        else:
            margin = max(2 * math.sqrt(_variance(block for block in blocks if block not in guessed)), self._floor * total)
            predicted, low, high = total, total - margin, total + margin
        # What was not measured is beyond that: it widens the interval.
        wider = predicted * (QUANTILE * math.sqrt(_variance(guessed)) / total + doubt)
        return Price(self.engine.name, predicted, max(0.0, low - wider), high + wider, interpolated, modelled)

    @property
    def _floor(self) -> float:
        """What the interval is never narrower than without a calibration."""
        return LAYERS_FLOOR if "imported" in self.environment else FLOOR

    def _timing(self, pair: Priced) -> Timing:
        found = self.find(pair)
        if found is not None:
            return found
        if message := self._failures.get(pair[0].key(pair[1])):
            raise Unpriceable(message)
        if not self._measures:
            raise self._lacking(pair)
        return self._measure(pair)

    def _lacking(self, pair: Priced) -> Lacking:
        spec, shapes = pair
        why = "nothing was measured in this environment"
        if self._row:
            try:
                self._estimates.block(spec, shapes)
            except InputError as error:
                why = str(error)
        sizes = ", ".join("x".join(map(str, shape)) for shape in shapes)
        where, hint = f"this machine and {self.engine.name}", " (measure it with: fastnas bench-latency BLUEPRINT)"
        if not self.runs_here:
            where, hint = f"{self.engine.name} on {self.environment['device']}", ""
        return Lacking(f"the latency table {self.table.path} lacks {spec} at {sizes} for {where}: {why}{hint}")

    def _measure(self, pair: Priced) -> Timing:
        spec, shapes = pair
        watch = self._stopwatch()
        runner = self._prepared(pair)
        timing = watch.measure(runner.run, mix_of(spec))
        while not self.table.put(self._row, spec.key(shapes), timing):  # another process corrected the table meanwhile
            self._adopt(self.table.environment(self.environment))
            timing = watch.measure(runner.run, mix_of(spec))
        if self._failures.pop(spec.key(shapes), None):
            self.table.drop_failure(self._row, spec.key(shapes))
        self._known[pair] = timing
        return timing

    def _prepared(self, pair: Priced) -> Runner:
        """A block that the engine is known to run, for it has run once. Raises Unpriceable."""
        try:
            runner = self.engine.prepare(BlockWorkload(*pair))
        except (FastnasError, RuntimeError, MemoryError) as error:
            raise self._failed(pair, error) from None
        try:
            runner.run()
        except Exception as error:  # engines have exceptions of their own
            raise self._failed(pair, error) from None
        return runner

    def _failed(self, pair: Priced, error: Exception) -> Unpriceable:
        """Records that the engine cannot run a block."""
        message = str(error) if isinstance(error, FastnasError) else str(cannot_run(self.engine, BlockWorkload(*pair), error))
        key = pair[0].key(pair[1])
        self.table.put_failure(self._row, key, message)
        self._failures[key] = message
        return Unpriceable(message)

    def find(self, pair: Priced) -> Timing | None:
        """What the table holds of a block, else an estimate where it may not be measured; None: nothing, it must be measured."""
        found = self.entry(pair)
        if found is not None or self._measures or not self._row:
            return found
        if pair not in self._estimated:
            try:
                self._estimated[pair] = self._estimates.block(*pair)
            except InputError:
                self._estimated[pair] = None
        return self._estimated[pair]

    def entry(self, pair: Priced) -> Timing | None:
        """What the table holds of a block; None: nothing. Another process may have measured it since the table was opened."""
        timing = self._known.get(pair)
        if timing is None and self._row:
            row = self.table.environment(self.environment)
            if row != self._row:  # another process corrected the table
                self._adopt(row)
            timing = self.table.get(self._row, pair[0].key(pair[1]))
            if timing is not None:
                self._known[pair] = timing
        return timing

    def _adopt(self, row: Environment | None) -> None:
        """Goes on with this environment and its entries, and forgets all that was known before."""
        imported = "imported" in self.environment
        if row and set(row.baselines) != (set() if imported else set(REFERENCES)):
            raise self.table.damaged(f"baselines are {row.stored!r}")
        self._row = row
        self._known: dict[Priced, Timing] = {}
        self._failures = self.table.failures(row) if row else {}  # messages by block key
        self._estimates = OperatorPrices(self.table, row, self.environment) if imported else Neighbours(self.table, row)
        self._estimated: dict[Priced, Estimate | None] = {}  # None: there is too little to tell
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


def _variance(blocks: Iterable[tuple[Timing, float]]) -> float:
    """Of the sum of blocks (timing, uses): uses of one block err together, blocks apart."""
    return sum((uses * timing.median_ms * timing.spread) ** 2 for timing, uses in blocks)
