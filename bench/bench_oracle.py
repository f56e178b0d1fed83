"""How far the oracle's prices are from whole networks that it has not seen, beside what cheaper oracles would have said.

    python bench/bench_oracle.py [--engine NAME[:PRECISION]]... [--networks N] [--tables DIR]

Runs `fastnas bench-latency --space all` for each engine (default: onnxruntime and torch-cpu) and writes
bench/results/oracle-ENGINE.json: accuracy on held-out networks, repeatability, baselines, query times. About 20 minutes an engine
on a quiet core. Interrupted, it goes on with the tables in DIR; `table_seconds` then counts the rest only.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from _record import provenance

from fastnas.files import cache_folder, write_atomic

RESULTS = Path(__file__).parent / "results"
COMMAND = "from fastnas.cli import main; main()"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--engine", action="append", help="may be repeated")
    options.add_argument("--networks", type=int, help="held-out networks (default: those of bench-latency)")
    options.add_argument("--tables", type=Path, default=cache_folder() / "bench-oracle", help="folder of the latency tables")
    chosen = options.parse_args()
    chosen.tables.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    for engine in chosen.engine or ["onnxruntime", "torch-cpu"]:
        name = engine.replace(":", "-").replace(",", "-")
        arguments = ["bench-latency", "--space", "all", "--engine", engine, "--table", str(chosen.tables / f"{name}.db"), "--json"]
        arguments += ["--networks", str(chosen.networks)] if chosen.networks else []
        load = os.getloadavg()[0]
        done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(done.returncode)  # what went wrong is on stderr
        result = json.loads(done.stdout)
        del result["blocks"]  # all blocks of all networks: they are in the table
        document = {**provenance(torch.device("cpu")), "engine": engine, "load_before": load, **result}
        write_atomic(RESULTS / f"oracle-{name}.json", json.dumps(document, indent=1) + "\n")
        print(json.dumps({"engine": engine, **result["accuracy"], "table_seconds": result["table_seconds"]}, indent=1))


if __name__ == "__main__":
    main()
