"""`run`: opens everything that a search needs, data, oracle, study, and hands it to the driver."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastnas.blueprint import Lineage
from fastnas.data.coco import find_annotation_file
from fastnas.data.dataset import DetectionData
from fastnas.data.pair import open_pair
from fastnas.data.problems import summarize, write_problems
from fastnas.data.shapes import generate
from fastnas.errors import InputError
from fastnas.files import cache_folder
from fastnas.latency import Oracle
from fastnas.models.start import check_start
from fastnas.search.config import SearchConfig, apply_change, check_config, demo_name, load_config
from fastnas.search.driver import Driver, Listener, priced
from fastnas.search.evolution import Evolution
from fastnas.search.executor import Executor, InProcess, Workers, evaluators
from fastnas.search.record import REJECTED
from fastnas.search.study import Study

# What may differ when a study is resumed: everything else would mix candidates that cannot be compared.
RESUMABLE = ("candidates", "finalists", "table", "epochs.final", "workers")


def run(
    space: str,
    out: Path | str,
    config: str | None = None,
    changes: tuple[str, ...] = (),
    resume: bool = False,
    listener: Listener | None = None,
) -> list[dict[str, Any]]:
    """Runs or resumes a search in folder `out` and returns the entries of its pareto.json.

    config: path of a YAML file (none: that of the level's demo); changes: `key.sub=value` texts applied to it.
    Raises InputError before anything is written where the input is wrong, FastnasError where the work failed.
    """
    out, listener = Path(out), listener or Listener()
    if resume:
        return _resume(out, space, config, changes, listener)
    checked = _checked(load_config(space, config, changes), config or demo_name(space, changes))
    Study.check_free(out)
    train, val = _open_data(checked)
    start = checked.make_space(len(train.split.classes)).ancestor
    if checked.init:
        check_start(start, checked.init)
    with Oracle.open(checked.table, checked.engine, device=checked.device) as oracle:
        ancestor = priced(start, Lineage(), oracle, checked.limits)
        if ancestor.state == REJECTED:
            raise InputError(f"the ancestor is rejected ({ancestor.reason}): choose another ancestor or a wider limit")
        with Study.create(out, space, checked.model_dump(mode="json")) as study:
            study.set_meta("data", _fingerprint(train, val, checked.init))
            return _drive(study, checked, train, val, oracle, listener)


def _resume(out: Path, space: str, config: str | None, changes: tuple[str, ...], listener: Listener) -> list[dict[str, Any]]:
    with Study.open(out) as study:  # everything is checked before anything is written
        checked = _resumed_config(study, space, config, changes)
        fingerprint, environment = study.data_fingerprint, study.environment
        study.records()  # raises where a row cannot be read
    train, val = _open_data(checked)
    if fingerprint != _fingerprint(train, val, checked.init):
        files = f"the annotations in {train.split.root}{' or the weights of init' if checked.init else ''}"
        raise InputError(f"{files} changed since {out} was begun: start a new study")
    with Oracle.open(checked.table, checked.engine, device=checked.device) as oracle:
        if environment and environment != oracle.environment:
            keys = ", ".join(_different(environment, oracle.environment))
            raise InputError(f"{out} was priced in another environment ({keys}): latencies would not compare; start a new study")
        with Study.open(out, write=True) as study:
            if study.config != checked.model_dump(mode="json"):
                study.set_config(checked.model_dump(mode="json"))
            return _drive(study, checked, train, val, oracle, listener)


def open_study(folder: Path | str) -> Study:
    """Opens a study for reading. Raises InputError if the folder holds none."""
    return Study.open(folder)


def _drive(study: Study, config: SearchConfig, train: DetectionData, val: DetectionData, oracle: Oracle, listener: Listener):
    """The search itself, on an open study; returns the entries of pareto.json."""
    listener.note(f"study: {study.folder}")
    problems = [*train.split.problems, *train.problems, *val.split.problems, *val.problems]
    for line in summarize(problems):
        listener.note(f"data: {line}")
    if problems:
        write_problems(study.folder / "data_problems.jsonl", problems)
    study.set_meta("environment", oracle.environment)
    listener.note(f"data: {len(train)} training and {len(val)} validation images in {train.split.root}")
    device = "" if oracle.runs_here else f" on {oracle.environment['device']}"
    listener.note(f"latency: {oracle.environment['engine']} {oracle.environment['version']}{device}, table {oracle.table.path}")
    if oracle.note:
        listener.note(f"latency: {oracle.note}")
    listener.note(f"latency: {oracle.calibration_note()}")
    with _executor(config, train, val) as executor:
        strategy = Evolution(config.make_space(len(train.split.classes)), config.seed)
        return Driver(study, config, strategy, executor, oracle, listener).run()


@contextmanager
def _executor(config: SearchConfig, train: DetectionData, val: DetectionData) -> Iterator[Executor]:
    if config.workers == 1:
        yield InProcess(*evaluators(config, train, val))
    else:
        with Workers(config.workers, config, _open_data) as workers:
            yield workers


def _open_data(config: SearchConfig) -> tuple[DetectionData, DetectionData]:
    """Training and validation data at the ancestor's input size, decoded; without a data folder the generated set, made if needed.

    Raises InputError where nothing can be learned from it.
    """
    size = config.make_space(1).ancestor.input
    root = Path(config.data.root) if config.data.root else None
    if root is None:
        g = config.data.generated
        name = f"shapes-{size[0]}x{size[1]}-{g.classes}-{g.train}-{g.val}-{g.seed}"
        root = generate(cache_folder() / "generated" / name, g.seed, g.train, g.val, size, g.classes)
    return open_pair(root, size)


def _checked(data: dict[str, Any], name: str) -> SearchConfig:
    """The checked configuration, with paths made absolute: a study may be resumed from another folder."""
    config = check_config(data, name)
    paths = config.data.root, config.table, config.init
    root, table, init = (str(Path(path).resolve()) if path else None for path in paths)
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root}), "table": table, "init": init})


def _resumed_config(study: Study, space: str, config: str | None, changes: tuple[str, ...]) -> SearchConfig:
    """The study's configuration with the changes that a resumed study may have."""
    if study.space != space:
        raise InputError(f"{study.folder} belongs to the space {study.space!r}, not {space!r}: name its space, or another --out")
    stored = study.config
    data = load_config(space, config) if config else study.config
    for change in changes:
        apply_change(data, change)
    checked = _checked(data, config or str(study.folder / "config.yaml"))
    wanted = checked.model_dump(mode="json")
    different = [key for key in _different(stored, wanted) if not key.startswith(RESUMABLE)]
    if different:
        raise InputError(f"{study.folder} was begun with another {', '.join(different)}: leave that, or start a new study")
    return checked


def _different(a: dict, b: dict, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    keys = []
    for key in a.keys() | b.keys():
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            keys += _different(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return sorted(keys)


def _fingerprint(train: DetectionData, val: DetectionData, init: str | None) -> dict[str, str]:
    """Hashes of the annotation files and of the weights to start from, so that a study is never resumed on others."""
    files = {data.split.split: find_annotation_file(data.split.root, data.split.split) for data in (train, val)}
    if init:
        files["init"] = Path(init)
    try:
        return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    except FileNotFoundError as error:
        raise InputError(f"no file {error.filename}: it must stay where it is while the study goes on") from None
