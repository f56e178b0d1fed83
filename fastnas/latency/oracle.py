"""The oracle: blueprint in, milliseconds with an interval out: the calibrated sum of its measured blocks.

Sum: every use of a block counts at its own input shapes (`Network.prices`). A table that holds networks measured whole corrects
the sum and takes the interval from their residuals (`calibration.py`). Without them the sum stands as it is, and its interval is
twice the spread of the sum, taking the blocks' spreads as independent, and never narrower than FLOOR to either side: a sum of
blocks timed alone differs from the whole network (data left in caches, layouts kept between blocks) by more than timing noise.

What is known of a block, measured or estimated, is in `entries.py`; a Price says which share of it is measured, interpolated and
modelled.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fastnas.blueprint import Blueprint
from fastnas.blueprint.expand import Network, expand
from fastnas.latency.calibration import MOST, TOO_FAR, Calibration, Parts, calibration_of, informative, parts_of
from fastnas.latency.engines import Engine, open_engine
from fastnas.latency.entries import Entries, Priced
from fastnas.latency.estimate import QUANTILE, SHARES, Estimate
from fastnas.latency.price import BlockPrice, Price, Unpriceable
from fastnas.latency.recorded import Recorded, choose_engine
from fastnas.latency.table import LatencyTable, default_path
from fastnas.latency.timing import DENSE, GATHER, Mix, Timing, mix_of
from fastnas.models.workload import NetworkWorkload

FLOOR = 0.10  # see bench/results/oracle-onnxruntime.json for how far sums are off
LAYERS_FLOOR = 0.28  # of sums of single layers: ten engines that NVIDIA published take 1/1.38 to 1/1.02 of the sum of their layers
_REMEMBERED = 100_000  # prices kept in memory
_TOGETHER = 8  # networks in memory at the same time, timed in interleaved rounds


class Oracle:
    """Prices blueprints with one table and one engine. Use as a context manager; not shared between threads.

    Blocks that the table lacks are measured when they are asked for and stored at once. Where that may not be, they are estimated
    from what the table holds, and raise Lacking where that says too little. No price is ever made up. A block that the engine
    cannot run is recorded with the engine's own words and raises Unpriceable from then on; `fill` tries it again.

    Opened for measuring, it first times the references again: a table that was made on a busy machine is corrected (`note` then
    says by how much). A table opened with `measure=False` is left as it is.
    """

    def __init__(self, table: LatencyTable, engine: Engine, measure: bool):
        self._entries = Entries(table, engine, measure, self._forget_all)
        self.table, self.engine, self.environment = table, engine, self._entries.environment

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
            while adopted != self._entries.adopted:  # never a sum of entries from before and after a correction
                adopted, price = self._entries.adopted, self._price(network)
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
                sum(self.timing((block.spec, use.input_shapes)).median_ms for use in block.uses),
                len(block.uses),
            )
            for block in expand(blueprint).blocks
        ]

    def missing(self, blueprints: Iterable[Blueprint]) -> list[Priced]:
        """The distinct (spec, input shapes) that the table lacks, in the order they come up."""
        wanted = dict.fromkeys(pair for blueprint in blueprints for pair in expand(blueprint).prices())
        return [pair for pair in wanted if self._entries.entry(pair) is None]

    def fill(self, blueprints: Iterable[Blueprint], progress: Callable[[int, int, Priced], None] | None = None) -> int:
        """Measures what is missing; returns how many. `progress(done, total, pair)` is called before each.

        What the engine cannot run is recorded in the table and left out. Where nothing may be measured, nothing happens.
        """
        missing, measured = self.missing(blueprints) if self._entries.measures else [], 0
        for done, pair in enumerate(missing):
            if progress:
                progress(done, len(missing), pair)
            with contextlib.suppress(Unpriceable):
                self._entries.measure(pair)
                measured += 1
        return measured

    def priceable(self, blueprints: Iterable[Blueprint]) -> list[Blueprint]:
        """Those without a block that the engine is known to fail at."""
        failing = set(self._entries.failures)
        return [b for b in blueprints if not failing or failing.isdisjoint(spec.key(s) for spec, s in expand(b).prices())]

    @property
    def calibration(self) -> Calibration | None:
        """The fit to the networks that the table holds, as far as their blocks are known; None: too few of them.

        One whose error is above TOO_FAR is not used for prices: then sums of blocks do not describe this device.
        """
        while self._calibration is None:
            adopted = self._entries.adopted
            found = calibration_of(self._networks(), self._entries.entry)
            if adopted == self._entries.adopted:  # never a fit to sums from before a correction
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
        return set(self._networks())

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
                stored = all(self.table.put_network(self._entries.row, b.text, timing, mix) for b, timing, mix in rows)
                if not stored:
                    self._entries.refresh()
        self._forget_all()
        return self.calibration

    def parts(self, blueprint: Blueprint) -> Parts:
        """What the calibration corrects: the milliseconds of the blocks by kind. Raises what a call raises."""
        return parts_of(expand(blueprint), self.timing)

    def timing(self, pair: Priced) -> Timing:
        """The timing of a block or a single layer, measured and stored where the table lacks it. Raises what a call raises."""
        return self._entries.timing(pair)

    def find(self, pair: Priced) -> Timing | None:
        """What the table holds of a block, else an estimate where it may not be measured; None: nothing, it must be measured."""
        return self._entries.find(pair)

    def entries(self) -> int:
        """How many blocks the table holds for this environment."""
        row = self._entries.row
        return self.table.count(row) if row else 0

    @property
    def runs_here(self) -> bool:
        """Whether whole networks can be timed: the engine is one of this machine's."""
        return self._entries.runs_here

    @property
    def note(self) -> str | None:
        """What was corrected in the table, if anything was."""
        return self._entries.note

    def measure_whole(self, blueprint: Blueprint) -> Timing:
        """Times the whole network on the synthetic scene. Nothing is stored."""
        return self.measure_whole_all([blueprint])[0]

    def measure_whole_all(self, blueprints: Sequence[Blueprint]) -> list[Timing]:
        """Times whole networks to compare them: in interleaved rounds (A B C A B C ...), so that slow changes meet all alike.

        All of them are in memory at the same time.
        """
        networks = [expand(blueprint) for blueprint in blueprints]
        runs = [self.engine.prepare(NetworkWorkload(n)).run for n in networks]
        return self._entries.stopwatch().measure_whole([(run, self._mix(n)) for run, n in zip(runs, networks, strict=True)])

    def _forget_all(self) -> None:
        self._prices: dict[Blueprint, Price] = {}
        self._calibration: tuple[Calibration | None] | None = None  # None: not computed yet

    def _networks(self) -> dict[str, tuple[Timing, Mix]]:
        """Those that the table holds measured whole."""
        row = self._entries.row
        return self.table.networks(row) if row else {}

    def _mix(self, network: Network) -> Mix:
        """Milliseconds that a whole network spends with each reference, as far as its blocks are known."""
        mix: Counter[str] = Counter()
        for pair, uses in network.prices().items():
            if timing := self._entries.entry(pair):
                for name, share in mix_of(pair[0]).items():
                    mix[name] += uses * timing.median_ms * share
        return mix or {DENSE: 0.5, GATHER: 0.5}

    def _price(self, network: Network) -> Price:
        blocks = [(self.timing(pair), uses) for pair, uses in network.prices().items()]
        total = sum(uses * timing.median_ms for timing, uses in blocks)
        guessed = [(timing, uses) for timing, uses in blocks if isinstance(timing, Estimate)]
        doubt, interpolated, modelled = (
            sum(uses * timing.median_ms * getattr(timing, what) for timing, uses in guessed) / total for what in SHARES
        )
        if calibration := self.usable_calibration:
            predicted, low, high = calibration(parts_of(network, self.timing))
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


def _variance(blocks: Iterable[tuple[Timing, float]]) -> float:
    """Of the sum of blocks (timing, uses): uses of one block err together, blocks apart."""
    return sum((uses * timing.median_ms * timing.spread) ** 2 for timing, uses in blocks)
