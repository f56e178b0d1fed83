"""Loading of the two operator libraries.

They are plain shared libraries without a Python ABI: torch loads them by path, and their static initialisers register
the operators of csrc/library.cpp. The CPU library must be there; the CUDA one is loaded only where torch has CUDA.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastnas.errors import FastnasError

_FOLDER = Path(__file__).parent
CPU_LIBRARY = _FOLDER / "libfastnas_cpu.so"
CUDA_LIBRARY = _FOLDER / "libfastnas_cuda.so"


def load_problem(library: Path) -> str | None:
    """Loads `library` into torch; returns None, or one line that says why it could not be loaded."""
    if not library.is_file():
        return f"{library.name} was not built"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"{library.name} cannot be loaded: {' '.join(str(error).split())}"
    return None


def _cuda_problem() -> str | None:
    if torch.version.cuda is None:
        return "this torch is a build without CUDA"
    if _CPU_PROBLEM is not None:
        return "the CPU library, which declares the operators, is not loaded"
    return load_problem(CUDA_LIBRARY)


_CPU_PROBLEM = load_problem(CPU_LIBRARY)
_CUDA_PROBLEM = _cuda_problem()


def register_fake(name: str, *tags: torch.Tag) -> Callable[[Callable], Callable]:
    """Decorator of the function that gives shapes, types and strides of an operator's results, for torch.compile and export.

    tags: of the operator, set here because the C++ way to do so needs torch 2.12. Does nothing when there is no library.
    """

    def register(shapes: Callable) -> Callable:
        if _CPU_PROBLEM is None:
            torch.library.register_fake(f"fastnas::{name}", shapes)
            operator = getattr(torch.ops.fastnas, name).default
            operator.tags.extend(tag for tag in tags if tag not in operator.tags)
        return shapes

    return register


def require_library() -> None:
    """Raises FastnasError when the operators are not there."""
    if _CPU_PROBLEM is not None:
        raise FastnasError(
            f"fastnas.ops: {_CPU_PROBLEM}; build the operators with `pip install .` in the source folder (needs g++)"
        )


def build_info() -> dict[str, Any]:
    """What the operators were built with and what could be loaded.

    Returns `{"torch", "torch_cuda", "cpu": {...}, "cuda": {...}}`, where each device has `"library"` (path), `"loaded"`
    (bool), `"problem"` (one line or None) and, when it was built, `"build"` (compiler, torch headers, architectures).
    """
    return {
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cpu": _describe(CPU_LIBRARY, _CPU_PROBLEM),
        "cuda": _describe(CUDA_LIBRARY, _CUDA_PROBLEM),
    }


def _describe(library: Path, problem: str | None) -> dict[str, Any]:
    return {"library": str(library), "loaded": problem is None, "problem": problem, "build": _build_record(library)}


# setup.py compiles this mark and one line of text after it into each library, so the record cannot go stale.
_MARK = b"fastnas-build-record:"


def _build_record(library: Path) -> str | None:
    if not library.is_file():
        return None
    _, found, rest = library.read_bytes().partition(_MARK)
    return rest.partition(b"\0")[0].decode(errors="replace") if found else None
