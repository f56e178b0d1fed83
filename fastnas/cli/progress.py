"""The display of a running search on stderr: one live line on a terminal, plain lines elsewhere."""

import sys

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn

from fastnas.report import units
from fastnas.search.driver import Listener
from fastnas.search.record import FAILED, FINISHED, REJECTED, Record


class SearchDisplay(Listener):
    """Candidates done, current best, and the time left, estimated from the trainings of this run."""

    def __init__(self):
        self.child_epochs = self.final_epochs = 0.0
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.done = self.total = self.finals = self.finalists = 0
        self.best: Record | None = None
        self.trained_epochs = self.trained_seconds = 0.0
        self.bar = Progress(BarColumn(24), TextColumn("{task.description}"), console=self.console)
        self.task = self.bar.add_task("", total=1.0)
        self.live = Live(self.bar, console=self.console, refresh_per_second=4, transient=True) if _is_terminal() else None
        self.running: dict[tuple[int, str], float] = {}  # (candidate, phase) -> share that is done
        self.workers = 1

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception):
        if self.live:
            self.live.stop()

    def begin(self, records, config):
        self.total, self.finalists = config.candidates, config.finalists + 1  # the ancestor is trained along
        self.child_epochs, self.final_epochs, self.workers = config.epochs.child, config.epochs.final, config.workers
        for record in records:
            self._count(record)
        if records:
            self.note(f"resumed: {self.done} of {self.total} candidates are done")

    def started(self, record, phase):
        self.running[record.id, phase] = 0.0
        self._show()

    def progress(self, record, share):
        for key in self.running:
            if key[0] == record.id:
                self.running[key] = share
        self._show()

    def ended(self, record, phase):
        self.running.pop((record.id, phase), None)
        if phase == "final":
            self.finals += 1
            final, time = record.final, f"{record.predicted_ms:.2f} ms predicted"
            if final.latency_ms is not None:
                time = f"{final.latency_ms:.2f} ms measured ({record.predicted_ms:.2f} predicted)"
            self.note(f"full training {record.id}: AP {final.ap:.3f} AP50 {final.ap50:.3f}, {time}, {final.seconds:.0f} s")
            self._learn(final.epochs, final.seconds)
            return
        self._count(record)
        price = f"{record.predicted_ms:.2f} ms, {record.params / 1e6:.2f} M, {record.macs / 1e9:.2f} GMACs"
        made = f" <- {record.lineage.parent} ({', '.join(record.lineage.operations)})" if record.lineage.parent is not None else ""
        head = f"#{record.id} {units.code(record.blueprint)}{made}: "
        if record.state == REJECTED:
            self.note(f"{head}rejected, {record.reason}")
        elif record.state == FAILED:
            self.note(f"{head}failed, {record.reason}")
        else:
            self._learn(record.epochs, record.seconds)
            left = "" if self.live else f"; {self.done}/{self.total}, {self._left()}"
            self.note(f"{head}AP {record.ap:.3f} AP50 {record.ap50:.3f}, {price}, {record.seconds:.0f} s{left}")

    def note(self, line):
        if self.live:
            self.console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _count(self, record: Record) -> None:
        self.done += record.state in (FINISHED, FAILED)
        self.finals += record.final is not None
        if record.state == FINISHED and (self.best is None or record.ap > self.best.ap):
            self.best = record

    def _learn(self, epochs: float, seconds: float) -> None:
        self.trained_epochs += epochs
        self.trained_seconds += seconds

    def _left(self) -> str:
        """Time left: epochs still to train times the seconds that an epoch took so far, shared by the workers."""
        if not self.trained_epochs:
            return "time left unknown"
        children = max(0, self.total - self.done)
        finals = max(0, self.finalists - self.finals)
        epochs = children * self.child_epochs + finals * self.final_epochs
        epochs -= sum(share * self._epochs(phase) for (_, phase), share in self.running.items())
        seconds = max(0.0, epochs) * self.trained_seconds / self.trained_epochs / self.workers
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def _epochs(self, phase: str) -> float:
        return self.child_epochs if phase == "search" else self.final_epochs

    def _show(self) -> None:
        if self.live:
            best = f"best AP {self.best.ap:.3f} at {self.best.predicted_ms:.2f} ms" if self.best else "no AP yet"
            names = [f"{id}" if phase == "search" else f"{id} (full)" for id, phase in self.running]
            text = f"{self.done}/{self.total} candidates, {best}, {self._left()} | training {', '.join(names)}"
            share = sum(self.running.values()) / len(self.running) if self.running else 0.0
            self.bar.update(self.task, completed=share, description=text)


def _is_terminal() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty()
