"""Where a number comes from: the machine as it was found, the versions, the commit, the command."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastnas import ops
from fastnas.latency.processor import cpu_name, cpuinfo

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["torchvision", "triton", "timm", "effdet", "numpy"]
GPU_FACTS = ["clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "power.limit", "utilization.gpu"]


def provenance(device: torch.device) -> dict[str, Any]:
    """Everything but the rows: `command`, `commit`, `date`, `machine`, `versions`, `operators`."""
    return {
        "command": command(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(device),
        "versions": versions(),
        "operators": {side: ops.build_info()[side]["build"] for side in ("cpu", "cuda")},
    }


def command() -> str:
    return " ".join(["python", _relative(sys.argv[0]), *map(_relative, sys.argv[1:])])


def _relative(argument: str) -> str:
    """Paths of this machine do not belong into a result."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def commit() -> str | None:
    """The commit's hash, with "-dirty" where a file under version control has been changed; None outside a repository.

    FASTNAS_COMMIT is for copies of the source that have no repository.
    """
    if own := os.environ.get("FASTNAS_COMMIT"):
        return own
    head = output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    # Results are written by the very run that asks, one after the other: they do not make the code dirty.
    changed = output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results"])
    return head and head + ("-dirty" if changed else "")


def machine(device: torch.device) -> dict[str, Any]:
    """Name, clocks and load as found: nothing is set."""
    fields = cpuinfo()
    found: dict[str, Any] = {
        "cpu": cpu_name(fields),
        "cores": os.cpu_count(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cpu_mhz": float(fields["cpu MHz"]) if "cpu MHz" in fields else None,
        "load": [round(value, 2) for value in os.getloadavg()],
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found["gpu"] = {
            "name": facts.name,
            "capability": f"{facts.major}.{facts.minor}",
            "multiprocessors": facts.multi_processor_count,
            "memory_bytes": facts.total_memory,
            "l2_bytes": getattr(facts, "L2_cache_size", None),
            **gpu_facts(device),
        }
    return found


def gpu_facts(device: torch.device) -> dict[str, str | None]:
    """Driver, clocks, temperature and power from nvidia-smi, in its units; empty where it does not answer."""
    names = ["driver_version", *GPU_FACTS]
    line = output(["nvidia-smi", f"--id={device.index or 0}", f"--query-gpu={','.join(names)}", "--format=csv,noheader"])
    values = [value.strip() for value in (line or "").split(",")]
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def output(command: list[str]) -> str | None:
    """What the command prints, or None where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
