"""How far the sum of blocks is from the whole network, and what a query costs. Nothing is calibrated.

    python bench/bench_oracle.py [--engine NAME[:PRECISION]]

Measures all blocks of 8 small detectors into a fresh table, times the networks whole in two interleaved passes, and writes
bench/results/oracle-ENGINE.json. About a minute on one core.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, median

from fastnas.blueprint import expand, parse
from fastnas.files import write_atomic
from fastnas.latency import Oracle, accuracy

HEAD = "/fpn:64/rpn:200,topk=300/rcnn:256/classes:3"
BACKBONES = [
    "basic:1-2,base=16",
    "basic:1-2-2-2,base=16,stem=3x3",
    "basic:11-21-21,base=32",
    "basic:11-21-21-21,base=64",
    "bottleneck:1-2-2,base=16",
    "bottleneck:11-21-21-21,base=32",
    "basic:1-21-211,base=32,norm=gn",
    "resnext32x4d:1-2-21,base=32,stem=3x3",
]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--engine", default="onnxruntime")
    engine = options.parse_args().engine
    blueprints = [parse(f"240x320/{backbone}{HEAD}") for backbone in BACKBONES]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, Oracle.open(Path(folder) / "latency.db", engine) as oracle:
        start = time.perf_counter()
        blocks = oracle.fill(blueprints, lambda done, total, pair: print(f"{done}/{total} {pair[0].op}", file=sys.stderr))
        filling = time.perf_counter() - start
        first, second = [[timing.median_ms for timing in oracle.measure_whole_all(blueprints)] for _ in range(2)]
        whole = (time.perf_counter() - start - filling) / (2 * len(blueprints))
        prices = [oracle(b) for b in blueprints]
        query, batch_query, new_query, expansion = query_times(oracle, blueprints)
        environment = oracle.environment
    truth = [fmean(pair) for pair in zip(first, second, strict=True)]
    predicted, macs = [price.predicted for price in prices], [expand(b).macs for b in blueprints]
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": load, "load_after": os.getloadavg()[0]}
    result = {
        "command": f"python bench/bench_oracle.py --engine {engine}",
        "machine": machine,
        "environment": environment,
        "blocks": blocks,
        "seconds_per_block": filling / blocks,
        "networks": [
            {"text": b.text, "measured_ms": [a, c], **price.to_dict(), "error_percent": 100 * (price.predicted / t - 1)}
            for b, a, c, t, price in zip(blueprints, first, second, truth, prices, strict=True)
        ],
        "mape": accuracy.mape(predicted, truth),
        "within_5": accuracy.within(5, predicted, truth),
        "within_10": accuracy.within(10, predicted, truth),
        "kendall_tau": accuracy.kendall_tau(predicted, truth),
        "interval_coverage": accuracy.coverage([p.low for p in prices], [p.high for p in prices], truth),
        "repeat_mape": accuracy.mape(first, second),
        "macs_mape": accuracy.proportional_mape(macs, truth),
        "macs_kendall_tau": accuracy.kendall_tau(macs, truth),
        "query_us": query,
        "batch_query_us": batch_query,
        "new_query_us": new_query,
        "expand_us": expansion,
        "whole_network_ms": 1e3 * whole,
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    write_atomic(folder / f"oracle-{engine.replace(':', '-')}.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def query_times(oracle: Oracle, blueprints: list) -> tuple[float, float, float, float]:
    """Median microseconds of: a query asked before, each in a batch of those, one about a new blueprint, its expansion."""
    asked, new, expansion = [], [], []
    for blueprint in blueprints * 50:
        oracle.forget(blueprint)
        for values, ask in ((new, oracle), (asked, oracle), (expansion, expand)):
            start = time.perf_counter()
            ask(blueprint)
            values.append(1e6 * (time.perf_counter() - start))
    batches = []
    for _ in range(50):
        start = time.perf_counter()
        [oracle(blueprint) for blueprint in blueprints]
        batches.append(1e6 * (time.perf_counter() - start) / len(blueprints))
    return median(asked), median(batches), median(new), median(expansion)


if __name__ == "__main__":
    main()
