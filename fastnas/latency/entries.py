"""Entries: what a table says of blocks in one engine's environment, and how that is added to and corrected.

Where nothing may be measured, a block that the table lacks is estimated: from measured blocks of its kind (see `neighbours.py`), or
on a device whose single layers were imported (`recorded.py`) as the sum of its layers (`operators.py`).
"""

from collections.abc import Callable

from fastnas.blueprint.blocks import Shapes, Spec
from fastnas.errors import FastnasError, InputError
from fastnas.latency.engines import Engine, Runner, cannot_run
from fastnas.latency.estimate import Estimate
from fastnas.latency.neighbours import Neighbours
from fastnas.latency.operators import OperatorPrices
from fastnas.latency.price import Lacking, Unpriceable
from fastnas.latency.recorded import Recorded
from fastnas.latency.table import Environment, LatencyTable
from fastnas.latency.timing import QUIET_AGAIN_S, REFERENCES, Stopwatch, Timing, lowered, mix_of
from fastnas.models.workload import BlockWorkload

Priced = tuple[Spec, Shapes]


class Entries:
    """Blocks that the table lacks are measured when they are asked for and stored at once; see `Oracle`.

    row: the environment in the table; None: it knows nothing of it yet. adopted: how often `row` was read, with other entries each
    time; `forget` is called whenever that happens. note: what was corrected, if anything was.
    """

    def __init__(self, table: LatencyTable, engine: Engine, measure: bool, forget: Callable[[], None]):
        self.table, self.engine, self.environment = table, engine, engine.environment()
        self.runs_here = not isinstance(engine, Recorded)
        self.measures = measure and self.runs_here
        self.note: str | None = None
        self.adopted = 0
        self._forget = forget
        self._watch: Stopwatch | None = None
        self._adopt(table.environment(self.environment))
        if self.row and self.measures:
            self.stopwatch()

    def find(self, pair: Priced) -> Timing | None:
        """What the table holds of a block, else an estimate where it may not be measured; None: nothing, it must be measured."""
        found = self.entry(pair)
        if found is not None or self.measures or not self.row or self._failure(pair):
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
        if timing is None and self.row:
            row = self.table.environment(self.environment)
            if row != self.row:  # another process corrected the table
                self._adopt(row)
            timing = self.table.get(self.row, pair[0].key(pair[1]))
            if timing is not None:
                self._known[pair] = timing
        return timing

    def timing(self, pair: Priced) -> Timing:
        """Measured and stored where the table lacks it. Raises Unpriceable, Lacking."""
        found = self.find(pair)
        if found is not None:
            return found
        if message := self._failure(pair):
            raise Unpriceable(message)
        if not self.measures:
            raise self._lacking(pair)
        return self.measure(pair)

    def measure(self, pair: Priced) -> Timing:
        """Measures and stores a block, whatever the table says of it. Raises Unpriceable."""
        spec, shapes = pair
        watch = self.stopwatch()
        runner = self._prepared(pair)
        timing = watch.measure(runner.run, mix_of(spec))
        while not self.table.put(self.row, spec.key(shapes), timing):  # another process corrected the table meanwhile
            self.refresh()
            timing = watch.measure(runner.run, mix_of(spec))
        if self.failures.pop(spec.key(shapes), None):
            self.table.drop_failure(self.row, spec.key(shapes))
        self._known[pair] = timing
        return timing

    def stopwatch(self) -> Stopwatch:
        """What times here; made, and the table's baselines checked with it, when it is first asked for."""
        if self._watch is None:
            if self.row is None:
                self.refresh()
            self._watch = Stopwatch(self.engine, self.row.baselines if self.row else None)
            if self.row:
                self._check_baselines(self.row, self._watch)
            elif self.measures:
                self._adopt(self.table.add_environment(self.environment, self._watch.baselines))
        return self._watch

    def refresh(self) -> None:
        """Reads again what another process may have corrected."""
        self._adopt(self.table.environment(self.environment))

    def _failure(self, pair: Priced) -> str | None:
        """What the engine said when it could not run this block."""
        return self.failures.get(pair[0].key(pair[1])) if self.failures else None

    def _lacking(self, pair: Priced) -> Lacking:
        spec, shapes = pair
        why = "nothing was measured in this environment"
        if self.row:
            try:
                self._estimates.block(spec, shapes)
            except InputError as error:
                why = str(error)
        sizes = ", ".join("x".join(map(str, shape)) for shape in shapes)
        where, hint = f"this machine and {self.engine.name}", " (measure it with: fastnas bench-latency BLUEPRINT)"
        if not self.runs_here:
            where, hint = f"{self.engine.name} on {self.environment['device']}", ""
        return Lacking(f"the latency table {self.table.path} lacks {spec} at {sizes} for {where}: {why}{hint}")

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
        self.table.put_failure(self.row, key, message)
        self.failures[key] = message
        return Unpriceable(message)

    def _adopt(self, row: Environment | None) -> None:
        """Goes on with this environment and its entries, and forgets all that was known before."""
        imported = "imported" in self.environment
        if row and set(row.baselines) != (set() if imported else set(REFERENCES)):
            raise self.table.damaged(f"baselines are {row.stored!r}")
        self.row = row
        self._known: dict[Priced, Timing] = {}
        self.failures = self.table.failures(row) if row else {}  # messages by block key
        self._estimates = OperatorPrices(self.table, row, self.environment) if imported else Neighbours(self.table, row)
        self._estimated: dict[Priced, Estimate | None] = {}  # None: there is too little to tell
        self.adopted += 1
        self._forget()
        if row and self._watch:
            self._watch.baselines = row.baselines

    def _check_baselines(self, row: Environment, watch: Stopwatch) -> None:
        """Corrects baselines that were taken on a busy machine, in the table too where it may be written."""
        measured = watch.quiet(QUIET_AGAIN_S)
        baselines = lowered(row.baselines, measured)
        if baselines == row.baselines:
            return
        if self.measures:
            self._adopt(self.table.lower_baselines(row, measured))
        else:
            watch.baselines = baselines
        factors = ", ".join(f"{name} x{baselines[name] / old:.2f}" for name, old in row.baselines.items() if baselines[name] != old)
        done = "its entries are corrected" if self.measures else "its entries are left as they are"
        self.note = f"{self.table.path} was made on a busy machine: {done} ({factors})"
