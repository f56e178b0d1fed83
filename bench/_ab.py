"""Interleaved comparison of two or more implementations, and the record of where the numbers come from."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def compare(candidates: dict[str, Callable[[], Any]], seconds: float, least: int = 5) -> dict[str, dict[str, float]]:
    """Runs the candidates in turn (A B A B ...), so that load and clock drift hit all alike.

    Returns per candidate `median_ms`, `min_ms` and `runs`. Takes about `seconds` in all, but `least` runs of each.
    """
    for run in candidates.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < least:
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"median_ms": round(statistics.median(taken), 4), "min_ms": round(min(taken), 4), "runs": len(taken)}
        for name, taken in times.items()
    }


def threads_from_arguments() -> list[int]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    return parser.parse_args().threads


def report(name: str, rows: list[dict[str, Any]], baseline: str) -> None:
    """Prints one line per row and writes results/<name>.json with the machine, the versions and the command."""
    for row in rows:
        timings = row["timings"]
        row["speedup_median"] = round(timings[baseline]["median_ms"] / timings["fastnas"]["median_ms"], 2)
        row["speedup_min"] = round(timings[baseline]["min_ms"] / timings["fastnas"]["min_ms"], 2)
        shown = "  ".join(f"{who} {t['median_ms']:9.3f} ({t['min_ms']:9.3f})" for who, t in timings.items())
        print(f"{row['case']:44s} {row['threads']} thr  {shown}  x{row['speedup_median']:.1f}")
    document = {"machine": _machine(), "versions": _versions(), "command": _command(), "unit": "ms", "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"median (min) in ms, speed-up of the medians over {baseline}; written to {path}")


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.processor())
    load = [round(value, 2) for value in os.getloadavg()]
    return {"cpu": model, "cores": os.cpu_count(), "isa": torch.backends.cpu.get_cpu_capability(), "load_at_end": load}


def _versions() -> dict[str, str]:
    import torchvision

    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}


def _command() -> str:
    return " ".join(["python", str(Path(sys.argv[0]).as_posix()), *sys.argv[1:]])
