"""The harness of all benchmarks of operators: a file lists its cases, this times them, judges them and writes the record.

    from _bench import Case, main

    def cases(device):            # "cpu" or "cuda"; asked anew for each number of threads; lazily, so that memory is freed
        yield Case("nms", "10000 uniform", "fp32", "-", "forward", {"fastnas": ..., "torchvision": ...}, goal=15)

    if __name__ == "__main__":
        main("nms", cases)

A case that takes long to make, or much memory, says its title at once and makes the rest in `build`, if its row is measured.

bench/README.md says how to read what comes out.
"""

import argparse
import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _record import machine, provenance
from _table import OURS, progress, table
from _timing import Run, Timing, copy_bandwidth, gbps, one_line, time_graphs, time_in_turn

from fastnas.files import write_atomic

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Case:
    """One row: the same work done by several implementations.

    candidates: name -> a call that does one run. "fastnas" is always there; names that begin with it ("fastnas nchw") are
      variants of ours, all others are peers. What is done once (`torch.compile`) happens in the warm-up, untimed.
    goal: the least speed-up over the strongest peer, or a dict of peer -> least speed-up. On the CPU it is for one thread.
    goal_percent_of_copy: the least share of the measured copy bandwidth, counted in floor_bytes.
    bound: the candidate that gets the operators' results for nothing, so no operators could be faster. It is no peer; the row
      says by how much it beats the strongest one.
    floor_bytes: the fewest bytes that this work has to read and write. max_error: of ours, against float64.
    build: makes the candidates and any other fields, by name; asked only for rows that are measured.
    """

    operator: str
    shape: str
    dtype: str
    layout: str
    direction: str  # "forward", "backward", "both"
    candidates: Mapping[str, Run] = field(default_factory=dict)
    goal: float | Mapping[str, float] | None = None
    floor_bytes: int | None = None
    max_error: float | None = None
    goal_percent_of_copy: float | None = None
    bound: str | None = None
    facts: Mapping[str, Any] | None = None  # anything else that the record should keep
    build: Callable[[], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.build is None and OURS not in self.candidates:
            raise ValueError(f"case {self.title!r}: no candidate is called {OURS!r}")

    @property
    def title(self) -> str:
        return " ".join([self.operator, self.shape, self.dtype, self.layout, self.direction])

    def built(self) -> "Case":
        """With all its fields."""
        return self if self.build is None else replace(self, **self.build(), build=None)


Cases = Callable[[torch.device], Iterator[Case]]


def main(name: str, cases: Cases, arguments: list[str] | None = None) -> None:
    """The command line of a benchmark. Exits with 1 where one of our own runs raised or the cases ended in an error."""
    options = _options(name, arguments)
    gc.freeze()  # torch's own objects need not be looked through before every row
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(f"bench_{name}: --device cuda, but torch {torch.__version__} finds no GPU here")
    document: dict[str, Any] = {"name": name, "device": device.type, "unit": "ms", **provenance(device)}
    document |= {"quick": options.quick, "seconds_per_row": options.seconds, "complete": False}
    document |= {"copy": {}, "rows": [], "problems": []}
    begin = time.monotonic()
    for threads in options.threads if device.type == "cpu" else [None]:
        _measure(document, cases, device, threads, options)
    document["seconds"] = round(time.monotonic() - begin, 1)
    document |= {"machine_after": machine(device), "complete": True}
    written = _write(document, options)
    print(table(document["rows"]))
    _print_end(document, written)
    failed = [row for row in document["rows"] if "error" in row["timings"][OURS]]
    if failed or document["problems"]:
        sys.exit(1)


def _options(name: str, arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"bench_{name}.py", description="Times our operators against their peers.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}), help="on the CPU")
    parser.add_argument("--seconds", type=float, help="of each row: 2 on the CPU, 0.5 on a GPU where left out")
    parser.add_argument("--only", metavar="TEXT", help="only rows whose title holds TEXT")
    parser.add_argument("--without", metavar="NAME", nargs="+", default=[], help="leave these candidates out, such as `compiled`")
    parser.add_argument("--quick", action="store_true", help="a moment per row, to see that it runs; the figures mean nothing")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where NAME-DEVICE.json goes (default: bench/results)")
    options = parser.parse_args(arguments)
    if any(threads < 1 for threads in options.threads):
        parser.error("--threads: expected 1 or more")
    if OURS in options.without:
        parser.error(f"--without: {OURS} is what the others are compared with")
    if options.seconds is None:
        options.seconds = 0.02 if options.quick else 2.0 if options.device == "cpu" else 0.5
    return options


def _measure(document: dict[str, Any], cases: Cases, device: torch.device, threads: int | None, options) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    key = "device" if threads is None else f"{threads} threads"
    scale = 1 / 64 if options.quick else 1.0
    copy = document["copy"][key] = copy_bandwidth(device, min(options.seconds, 1.0), scale)
    torch.manual_seed(0)
    try:
        for case in cases(device):
            if options.only and options.only not in case.title:
                continue
            row = measure_row(case.built(), device, threads, options, copy)
            document["rows"].append(row)
            if options.out is not None:
                _write(document, options)  # a run that is stopped leaves what it has
            print(progress(row), file=sys.stderr, flush=True)
    except Exception as error:  # a wrong result, memory that ran out: what was measured is kept, the exit status tells
        document["problems"].append(f"{key}: the cases ended early: {one_line(error)}")
        print(document["problems"][-1], file=sys.stderr, flush=True)


def measure_row(case: Case, device: torch.device, threads: int | None, options, copy: dict[str, Any]) -> dict[str, Any]:
    """Times one case and judges it."""
    candidates = {name: run for name, run in case.candidates.items() if name not in options.without}
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # else a second shape would be compiled for all shapes, and a ninth not at all
    least = 2 if options.quick else 5
    timings = time_in_turn(candidates, device, options.seconds, least)
    if device.type == "cuda":
        time_graphs(candidates, device, timings, options.seconds / 2)
    row: dict[str, Any] = {
        "operator": case.operator, "shape": case.shape, "dtype": case.dtype, "layout": case.layout,
        "direction": case.direction, "device": device.type, "threads": threads, "timings": timings,
    }  # fmt: skip
    row |= _compare(timings, case.bound)
    if case.floor_bytes is not None:
        row |= _bandwidth(case.floor_bytes, timings[OURS], copy)
    judged = threads in (None, 1)  # the goals are for one thread
    row |= {"goal": case.goal if judged else None, "goal_percent_of_copy": case.goal_percent_of_copy if judged else None}
    row |= {"reached": _reached(row), "max_error": case.max_error, **({"facts": dict(case.facts)} if case.facts else {})}
    return row


def _compare(timings: dict[str, Timing], bound: str | None) -> dict[str, Any]:
    """Speed-ups over each peer, and over the strongest: the one of the least median, and of the least minimum."""
    ours, result = timings[OURS], {"speedup": {}, "strongest": None, "speedup_median": None, "speedup_min": None}
    valid = {name: timing for name, timing in timings.items() if "error" not in timing}
    peers = {name: timing for name, timing in valid.items() if not name.startswith(OURS) and name != bound}
    if OURS not in valid or not peers:
        return result
    for name, timing in peers.items():
        result["speedup"][name] = {
            "median": _ratio(timing["median_ms"], ours["median_ms"]),
            "min": _ratio(timing["min_ms"], ours["min_ms"]),
        }
        if "median_ms" in timing.get("graph", {}) and "median_ms" in ours.get("graph", {}):
            result["speedup"][name]["graph"] = _ratio(timing["graph"]["median_ms"], ours["graph"]["median_ms"])
    result["strongest"] = min(peers, key=lambda name: peers[name]["median_ms"])
    result["speedup_median"] = min(value["median"] for value in result["speedup"].values())
    result["speedup_min"] = min(value["min"] for value in result["speedup"].values())
    graphs = [value["graph"] for value in result["speedup"].values() if "graph" in value]
    if graphs:
        result["speedup_graph"] = min(graphs)
    if bound in valid:
        best = {key: min(timing[key] for timing in peers.values()) for key in ("median_ms", "min_ms")}
        result |= {f"bound_{key[:-3]}": _ratio(best[key], valid[bound][key]) for key in best}
    return result


def _ratio(theirs: float, ours: float) -> float:
    return float(f"{theirs / ours:.3g}") if ours > 0 else math.inf


def _bandwidth(floor_bytes: int, ours: Timing, copy: dict[str, Any]) -> dict[str, Any]:
    """GB/s of the floor's bytes, and their share of a copy: of one in the cache where the floor is not larger than that copy."""
    result: dict[str, Any] = {"floor_bytes": floor_bytes}
    if "error" in ours:
        return result
    kind = "cache" if "cache" in copy and floor_bytes <= copy["cache"]["bytes"] else "memory"
    measured = {"": ours, "graph_": ours.get("graph", {})}
    for prefix, timing in measured.items():
        if "median_ms" in timing:
            rate = gbps(floor_bytes, timing["median_ms"])
            result[f"{prefix}gbps"] = float(f"{rate:.4g}")
            result[f"{prefix}percent_of_copy"] = float(f"{100 * rate / copy[kind]['gbps']:.3g}")
    return {**result, "copy": kind}


def _reached(row: dict[str, Any]) -> bool | None:
    """Whether the goals were reached by the medians; None where there is none, or no peer ran."""
    goal, verdicts = row["goal"], []
    if isinstance(goal, Mapping):
        verdicts += [row["speedup"][peer]["median"] >= least for peer, least in goal.items() if peer in row["speedup"]]
    elif goal is not None and row["speedup_median"] is not None:
        verdicts.append(row["speedup_median"] >= goal)
    if row["goal_percent_of_copy"] is not None and "percent_of_copy" in row:
        verdicts.append(max(row["percent_of_copy"], row.get("graph_percent_of_copy", 0)) >= row["goal_percent_of_copy"])
    if goal is None and row["goal_percent_of_copy"] is None:
        return None
    if "error" in row["timings"][OURS]:
        return False
    return all(verdicts) if verdicts else None


# ----------------------------------------------------------------------------------------------------------------------
# What is written and printed


def _write(document: dict[str, Any], options) -> Path | None:
    """A run that left something out does not replace a complete record unless it is told where to go."""
    if options.out is None and (options.quick or options.only or options.without):
        return None
    folder = options.out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{document['name']}-{document['device']}.json"
    write_atomic(path, json.dumps(document, indent=1) + "\n")
    return path


def _print_end(document: dict[str, Any], written: Path | None) -> None:
    for key, copies in document["copy"].items():
        print("copy, " + key + ": " + ", ".join(f"{name} {found['gbps']:.0f} GB/s" for name, found in copies.items()))
    for problem in document["problems"]:
        print(f"PROBLEM: {problem}")
    print(f"written to {os.path.relpath(written)}" if written else "not written: give --out DIR to keep a partial or quick run")
