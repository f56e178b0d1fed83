"""One training outside of a search: a blueprint, a data set, a folder with the averaged weights and the log."""

from collections.abc import Callable
from pathlib import Path

from fastnas.blueprint import Blueprint
from fastnas.data.pair import open_pair
from fastnas.data.problems import summarize, write_problems
from fastnas.errors import FastnasError, InputError
from fastnas.models.start import check_start
from fastnas.train.config import TrainRun
from fastnas.train.evaluator import METRICS_FILE, Evaluation, Evaluator, Job

WEIGHTS = "weights.safetensors"


def train_single(
    blueprint: Blueprint, root: Path | str, out: Path | str, config: TrainRun,
    note: Callable[[str], None] = lambda line: None, progress: Callable[[float], None] = lambda share: None,
) -> tuple[Blueprint, Evaluation]:  # fmt: skip
    """Trains and evaluates (by pycocotools); writes WEIGHTS and METRICS_FILE into `out`, which may hold none of them yet.

    The number of classes becomes the data's; the blueprint is returned as it was trained. progress gets the share that is done.
    Raises InputError before anything is written; FastnasError where the training diverged, of which only the log is kept.
    """
    out = Path(out)
    if taken := [name for name in (WEIGHTS, METRICS_FILE) if (out / name).exists()]:
        raise InputError(f"{out / taken[0]} is there already: name another --out")
    train, val = open_pair(root, blueprint.input)
    blueprint = blueprint.replace(classes=len(train.split.classes))
    init = Path(config.init) if config.init else None
    if init:
        check_start(blueprint, init)
    train.fill()
    val.fill()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out}: {error.strerror}") from None
    problems = [*train.split.problems, *train.problems, *val.split.problems, *val.problems]
    for line in summarize(problems):
        note(f"data: {line}")
    if problems:
        write_problems(out / "data_problems.jsonl", problems)
    note(f"data: {len(train)} training and {len(val)} validation images in {train.split.root}")
    job = Job(blueprint, out, WEIGHTS, "final", config.epochs, config.seed, init=init)
    outcome = Evaluator(train, val, config.train).evaluate(job, progress)
    if outcome.error:
        raise FastnasError(f"the training failed: {outcome.error} (lower train.lr)")
    return blueprint, outcome
