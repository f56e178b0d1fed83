"""`fastnas doctor`: what is here, what can run, and what to do about the rest. Reports what is missing, never fails on it."""

import importlib.metadata
import os
import platform
from collections.abc import Callable
from typing import Any

import click

import fastnas
from fastnas.cli.main import common_options
from fastnas.errors import FastnasError

PACKAGES = (
    *("torch", "torchvision", "onnxruntime", "onnx", "numpy", "pycocotools", "faster-coco-eval", "pillow", "safetensors"),
    *("pydantic", "plotly", "click", "rich", "pyyaml"),
)
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
BUILD_HINT = "build the operators with `pip install .` in the source folder (needs a C++ compiler)"


@click.command()
@common_options
def command(as_json):
    """Versions, devices, engines, what the extension was built with and where the latency table is."""
    result = {
        "versions": _versions(),
        "platform": platform.platform(),
        "cpu": _tried(_cpu),
        "memory": _tried(_memory),
        "cuda": _tried(_cuda),
        "operators": _tried(_operators),
        "engines": _engines(),
        "table": _tried(_table),
    }
    if not as_json:
        _print(result)
    return result


def _tried(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `look` finds; an error becomes its `problem`. Anything may be broken on the machine that this command is for."""
    try:
        return {"problem": None, **look()}
    except Exception as error:
        return {"problem": _one_line(error)}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _versions() -> dict[str, str | None]:
    """Installed versions, None for what is not installed."""
    versions: dict[str, str | None] = {"fastnas": fastnas.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _cpu() -> dict[str, Any]:
    from fastnas.latency.processor import cpu_name, cpuinfo

    fields = cpuinfo()
    flags = set(fields.get("flags", "").split())
    return {
        "model": cpu_name(fields),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": {name: name in flags for name in FEATURES},
        "bf16_training_pays": "amx_bf16" in flags or "avx512_bf16" in flags,
    }


def _memory() -> dict[str, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    return {"total_bytes": page * os.sysconf("SC_PHYS_PAGES"), "available_bytes": page * os.sysconf("SC_AVPHYS_PAGES")}


def _cuda() -> dict[str, Any]:
    import torch

    if torch.version.cuda is None:
        return {"problem": "this torch is a build without CUDA", "version": None, "devices": []}
    if not torch.cuda.is_available():
        return {"problem": "torch finds no usable GPU or driver", "version": torch.version.cuda, "devices": []}
    devices = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        devices.append({"name": found.name, "capability": f"{found.major}.{found.minor}", "memory_bytes": found.total_memory})
    return {"version": torch.version.cuda, "devices": devices}


def _operators() -> dict[str, Any]:
    from fastnas.ops import build_info

    found = build_info()
    problem = found["cpu"]["problem"]
    return {"problem": f"{problem}: {BUILD_HINT}" if problem else None, **found}


def _engines() -> list[dict[str, Any]]:
    try:
        from fastnas.latency.engines import ENGINES, open_engine
    except Exception as error:
        return [{"name": "all", "runs": False, "version": None, "precision": None, "problem": _one_line(error)}]
    found = []
    for name in ENGINES:
        row = {"name": name, "runs": False, "version": None, "precision": None, "problem": None}
        try:
            engine = open_engine(name)
            found.append({**row, "runs": True, "version": engine.version, "precision": engine.precision})
        except FastnasError as error:  # says itself what to install, or that there is no device
            found.append({**row, "problem": str(error).removeprefix(f"engine {name} ")})
        except Exception as error:
            found.append({**row, "problem": _one_line(error)})
    return found


def _table() -> dict[str, Any]:
    from fastnas.latency.table import LatencyTable, default_path

    path = default_path()
    where = {"path": str(path), "cache": str(path.parent), "exists": path.exists(), "entries": 0, "environments": []}
    if not path.exists():
        return where
    try:
        table = LatencyTable(path, writable=False)
        try:
            environments = table.environments()
        finally:
            table.close()
    except Exception as error:
        return {**where, "problem": _one_line(error)}
    return {**where, "entries": sum(environment["entries"] for environment in environments), "environments": environments}


def _print(result: dict[str, Any]) -> None:
    for name, version in result["versions"].items():
        _line(name, version or f"not installed (pip install {name})")
    _line("platform", result["platform"])
    _line("CPU", *_cpu_lines(result["cpu"]))
    memory = result["memory"]
    sizes = [f"{memory[key] / 2**30:.1f} GiB" for key in ("total_bytes", "available_bytes") if key in memory]
    _line("memory", memory["problem"] or f"{sizes[0]}, {sizes[1]} free")
    _line("CUDA", *_cuda_lines(result["cuda"]))
    _line("operators", *_operator_lines(result["operators"]))
    for engine in result["engines"]:
        _line(f"engine {engine['name']}", engine["problem"] or f"{engine['version']}, {engine['precision']}")
    _line("latency table", *_table_lines(result["table"]))


def _line(name: str, *values: str) -> None:
    for index, value in enumerate(values):
        click.echo(f"{name if index == 0 else '':18} {value}")


def _cpu_lines(cpu: dict[str, Any]) -> list[str]:
    if cpu["problem"]:
        return [cpu["problem"]]
    have = " ".join(name for name, there in cpu["features"].items() if there) or "none of " + " ".join(FEATURES)
    pays = "pays (the processor computes in bf16)" if cpu["bf16_training_pays"] else "does not pay (it would be emulated)"
    return [f"{cpu['model']}, {cpu['cores']} cores for this process", have, f"bf16 training on the CPU {pays}"]


def _cuda_lines(cuda: dict[str, Any]) -> list[str]:
    devices = [
        f"{device['name']}, sm_{device['capability'].replace('.', '')}, {device['memory_bytes'] / 2**30:.1f} GiB"
        for device in cuda.get("devices", [])
    ]
    return [cuda["problem"]] if cuda["problem"] else [f"{cuda['version']}", *devices]


def _operator_lines(operators: dict[str, Any]) -> list[str]:
    if "cpu" not in operators:
        return [f"{operators['problem']}: {BUILD_HINT}"]
    lines = []
    for device in ("cpu", "cuda"):
        found = operators[device]
        lines.append(f"{device}: {found['problem'] or 'loaded from ' + str(found['library'])}")
        if found["build"]:
            lines.append(f"{device}: built with {found['build']}")
    return lines + ([BUILD_HINT] if operators["cpu"]["problem"] else [])


def _table_lines(table: dict[str, Any]) -> list[str]:
    if "path" not in table:
        return [table["problem"]]
    if table["problem"]:
        return [table["path"], table["problem"]]
    if not table["exists"]:
        return [table["path"], "not there yet; the first search or `fastnas bench-latency` makes it"]
    lines = [f"{table['path']}: {table['entries']} blocks"]
    for found in table["environments"]:
        what = " ".join(str(found.get(key, "")) for key in ("engine", "version", "precision"))
        lines.append(f"{found['entries']} blocks: {what} on {found.get('device', 'an unknown device')}")
    return lines
