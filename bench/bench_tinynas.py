"""How far off prices are that are interpolated between the convolutions of a published table, and how soon a table answers.

    python bench/bench_tinynas.py conv_fp16.txt:fp16 conv_fp32.txt:fp32

The files are TinyNAS's tables for a V100 (latency of single convolutions with TensorRT, batch 1 is what counts here). Every line of
the grid is left out in turn and predicted from the two beside it, which makes gaps twice as wide as they are. Compared are what
`fastnas.latency.grid` does (the logarithm of measured over modelled), the logarithm of the time, the time itself (as TinyNAS
interpolates), and the model alone. Writes bench/results/tinynas-v100.json. About half a minute on one core.
"""

import json
import os
import platform
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np

from fastnas.blueprint import PRESETS
from fastnas.files import write_atomic
from fastnas.latency import Oracle
from fastnas.latency.grid import AXES, Grid, from_neighbours
from fastnas.latency.operators import OperatorPrices
from fastnas.latency.table import LatencyTable
from fastnas.latency.tinynas import import_tinynas, read_tinynas

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("fasterrcnn-r50-fpn", "efficientdet-d0")


def main() -> None:
    files = [argument.rpartition(":") for argument in sys.argv[1:]]
    if not files or not all(path for path, _, _ in files):
        sys.exit(__doc__)
    record = {
        "command": " ".join(["python", "bench/bench_tinynas.py", *(f"{Path(path).name}:{name}" for path, _, name in files)]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()[0]},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "tables": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v100.db"
        for file, _, precision in files:
            record["tables"][precision] = {"import_cpu_s": _import(path, file, precision)}
        for _, _, precision in files:
            record["tables"][precision] |= _bench(path, precision)
    RESULTS.mkdir(exist_ok=True)
    write_atomic(RESULTS / "tinynas-v100.json", json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def _import(path: Path, file: str, precision: str) -> float:
    start, table = time.process_time(), LatencyTable(path)
    import_tinynas(table, read_tinynas(file, f"tensorrt:{precision}", "v100"))
    table.close()
    return time.process_time() - start


def _bench(path: Path, precision: str) -> dict:
    networks, start = {}, time.process_time()
    with Oracle.open(path, f"tensorrt:{precision}", device="v100") as oracle:
        opened = time.process_time() - start
        for name in NETWORKS:
            before = time.process_time()
            networks[name] = {**oracle(PRESETS[name]).to_dict(), "cpu_s": time.process_time() - before}
        entries, table = oracle.entries(), oracle.table
        prices = OperatorPrices(table, table.environment(oracle.environment), oracle.environment)
        models = {("depthwise" if kind else "dense"): vars(model) for kind, model in prices.models.items()}
        errors = {"dense": _errors(prices, False), "depthwise": _errors(prices, True)}
    times = {"all_entries": sum(_count(path)), "open_cpu_s": opened}
    return {"entries": entries, **times, "networks": networks, "models": models, "left_out": errors}


def _count(path: Path) -> list[int]:
    table = LatencyTable(path, writable=False)
    try:
        return [one["entries"] for one in table.environments()]
    finally:
        table.close()


def _errors(prices: OperatorPrices, depthwise: bool) -> dict:
    """By the axes along which lines are left out, and by method: mean, median and 90 % quantile in percent."""
    grids = list(_grids(prices, depthwise))
    axes = [chosen for count in (1, 2, 3) for chosen in combinations(AXES, count) if not (depthwise and "ratio" in chosen)]
    found = {
        " + ".join(chosen): {
            "measured over modelled": _summary([grid.left_out(chosen) for grid, _, _ in grids]),
            "log of time": _summary([plain.left_out(chosen) for _, plain, _ in grids]),
            "time": _summary([_linear(plain, chosen) for _, plain, _ in grids]),
        }
        for chosen in axes
    }
    return {**found, "model alone": _summary([off for _, _, off in grids])}


def _grids(prices: OperatorPrices, depthwise: bool):
    """Of every family: the grid, the same without a model, and how far the model alone is off."""
    convs, model = prices.convs, prices.models[depthwise]
    families = sorted({family for family in zip(convs.kernel, convs.stride, convs.added, strict=True)})
    for family in families:
        for image in (False, True):
            part = convs.select((depthwise, *family, image))
            if len(part.ms) and not (depthwise and image):
                modelled = model(*part.features(prices._bytes))
                plain = Grid(part.points(), part.ms, np.ones(len(part.ms)))
                yield Grid(part.points(), part.ms, modelled), plain, np.abs(modelled / part.ms - 1)


def _linear(plain: Grid, axes: tuple[str, ...]) -> np.ndarray:
    """Errors of times that are linear in ratio, channels and side."""
    ms = predicted = np.exp(plain.logs)
    for axis in axes:
        index = AXES.index(axis)
        predicted = from_neighbours(predicted, np.exp(plain.lines[index]), index)
    errors = np.abs(predicted / ms - 1)
    return errors[np.isfinite(errors)]


def _summary(errors: list[np.ndarray]) -> dict:
    found = 100 * np.concatenate(errors)
    shown = {"mean": np.mean(found), "median": np.median(found), "q90": np.quantile(found, 0.9)}
    return {"layers": len(found), **{name: round(float(value), 2) for name, value in shown.items()}}


if __name__ == "__main__":
    main()
