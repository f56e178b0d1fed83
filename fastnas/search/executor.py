"""Executors: where trainings run. One after the other in this process, or side by side in worker processes.

A worker is a fresh process with the data decoded in its own memory and its share of the processor's cores: small networks train
about as fast on one core as on two, so two workers on two cores train nearly twice as many. Workers never see the study; the
driver alone writes it. They ignore Ctrl-C (the driver puts their candidates back) and end with the driver, however that ends.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Protocol

from fastnas.data.dataset import DetectionData
from fastnas.search.config import SearchConfig, check_config
from fastnas.train.evaluator import Evaluation, Evaluator, Job

Progress = Callable[[int, float], None]  # index of the job, share that is done


class Executor(Protocol):
    workers: int  # trainings side by side

    def run(self, jobs: Sequence[Job], progress: Progress) -> Iterator[tuple[int, Evaluation]]:
        """Runs all jobs; yields (index, outcome) as they end. A job that fails on its own has `error` in its outcome."""


class InProcess:
    """One job after the other, in this process. `final` sees all training images."""

    workers = 1

    def __init__(self, search: Evaluator, final: Evaluator):
        self._evaluators = {"search": search, "final": final}

    def run(self, jobs: Sequence[Job], progress: Progress) -> Iterator[tuple[int, Evaluation]]:
        for index, job in enumerate(jobs):
            yield index, _attempt(self._evaluators[job.phase], job, lambda share, index=index: progress(index, share))


def evaluators(config: SearchConfig, train: DetectionData, val: DetectionData) -> tuple[Evaluator, Evaluator]:
    """The evaluators of the search, which may see a part of the training images, and of full trainings."""
    return Evaluator(train.subset(config.data.fraction, config.seed), val, config.train), Evaluator(train, val, config.train)


def _attempt(evaluator: Evaluator, job: Job, progress: Callable[[float], None]) -> Evaluation:
    try:
        return evaluator.evaluate(job, progress)
    except (RuntimeError, MemoryError) as error:  # out of memory, a shape that a kernel refuses: this candidate's own
        return Evaluation({}, 0.0, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


# ----------------------------------------------------------------------------------------------------------------------
# Worker processes


class WorkerError(Exception):
    """A worker failed in a way that is no candidate's own; the message holds its traceback."""


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    connection: Connection
    job: int | None = None  # index of the one it works on


class Workers:
    """`count` worker processes, started when the first jobs come. `open_data` is called in each of them."""

    def __init__(self, count: int, config: SearchConfig, open_data: Callable[[SearchConfig], tuple[DetectionData, DetectionData]]):
        self.workers = count
        self._config, self._open_data = config, open_data
        self._pool: list[_Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers, whatever they do."""
        for worker in self._pool:
            worker.process.kill()
        for worker in self._pool:
            worker.process.join()
            worker.connection.close()
        self._pool.clear()

    def run(self, jobs: Sequence[Job], progress: Progress) -> Iterator[tuple[int, Evaluation]]:
        left = list(enumerate(jobs))
        while len(self._pool) < min(self.workers, len(jobs)):
            self._pool.append(self._start())
        try:
            while left or any(worker.job is not None for worker in self._pool):
                for slot, worker in enumerate(self._pool):
                    if worker.job is None and left:
                        self._hand(slot, *left.pop(0))
                busy = {worker.connection: worker for worker in self._pool if worker.job is not None}
                for connection in wait(list(busy)):
                    yield from self._receive(busy[connection], progress)
        except BaseException:
            self.close()  # they would go on with jobs that nobody waits for
            raise

    def _hand(self, slot: int, index: int, job: Job) -> None:
        try:
            self._pool[slot].connection.send(job)
        except OSError:  # it died while it had nothing to do
            self._pool[slot] = self._start()
            self._pool[slot].connection.send(job)
        self._pool[slot].job = index

    def _receive(self, worker: _Worker, progress: Progress) -> Iterator[tuple[int, Evaluation]]:
        """One message of a worker: progress, an outcome, or the end of it."""
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            code, index = worker.process.exitcode, worker.job
            self._pool[self._pool.index(worker)] = self._start()
            how = f"was killed by signal {-code} (9: often out of memory)" if code and code < 0 else f"ended with exit code {code}"
            yield index, Evaluation({}, 0.0, f"the process that trained it {how}")
            return
        if kind == "progress":
            progress(worker.job, content)
        elif kind == "outcome":
            index, worker.job = worker.job, None
            yield index, content
        else:
            raise WorkerError(content)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # a fork would share OpenMP's threads, which are not there in the child
        ours, theirs = context.Pipe()
        arguments = theirs, self._config.model_dump(mode="json"), self._open_data, self.workers
        process = context.Process(target=_serve, args=arguments, daemon=True)
        # The new process inherits the mask: a Ctrl-C before its code runs would end it with a traceback. Ours comes after.
        resource_tracker.ensure_running()  # else starting the process would, and that unblocks the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(process, ours)


def _serve(connection: Connection, config: dict, open_data: Callable, workers: int) -> None:
    """The life of a worker: takes jobs until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # for the processes that the data may start
    threading.Thread(target=_end_with_driver, daemon=True).start()
    try:
        import torch

        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
        checked = check_config(config)
        search, final = evaluators(checked, *open_data(checked))
        while True:
            job = connection.recv()
            evaluator = final if job.phase == "final" else search
            outcome = _attempt(evaluator, job, lambda share: connection.send(("progress", share)))
            connection.send(("outcome", outcome))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
    except BaseException:
        connection.send(("bug", traceback.format_exc()))


def _end_with_driver() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
