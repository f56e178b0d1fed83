"""Compiles a CUDA source as setup.py does and reads what ptxas says of each kernel: registers, shared memory, spills."""

import re
import runpy
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture. stack, stores and loads: bytes of local memory a thread; shared: bytes a block."""

    name: str
    architecture: str
    registers: int
    shared: int
    stack: int
    stores: int
    loads: int

    @property
    def in_local_memory(self) -> bool:
        """Registers spilled, or an array indexed at run time: what should be in registers goes through memory."""
        return bool(self.stack or self.stores or self.loads)


def load_setup() -> dict[str, Any]:
    """The names of setup.py, which builds only when it is run as a script."""
    return runpy.run_path(str(ROOT / "setup.py"))


def compile_command(setup: dict[str, Any], toolkit: Any, source: Path, architectures: str, target: Path) -> list[str]:
    """setup.py's own nvcc command for `source` with the report of ptxas, in one thread, else the report's lines would mix.

    A target that ends in .cubin is compiled for the GPU only (one architecture, a third of the time).
    """
    name = str(source.relative_to(ROOT)) if source.is_relative_to(ROOT) else str(source)
    return [
        str(toolkit.nvcc), *(flag for flag in setup["NVCC_FLAGS"] if not flag.startswith("--threads")),
        *setup["architecture_flags"](architectures, toolkit.architectures()),
        f"-DTORCH_TARGET_VERSION={setup['TORCH_TARGET']}", "-DUSE_CUDA", "-isystem", str(setup["find_torch"]().folder / "include"),
        *setup["EXACT_FLAGS"].get(name, []), "-Xptxas=-v", "-cubin" if target.suffix == ".cubin" else "-c", name, "-o", str(target),
    ]  # fmt: skip


def compile_source(command: list[str]) -> tuple[list[Kernel], list[str]]:
    """The kernels and every line that is no report of ptxas: warnings. Raises AssertionError where nvcc fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    return read(text)


ENTRY = re.compile(r"ptxas info\s*: Compiling entry function '(.+)' for '(\w+)'")
FRAME = re.compile(r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"ptxas info\s*: Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
SILENT = re.compile(r"ptxas info\s*: (\d+ bytes gmem|Function properties for|Compile time)|\s*$")


def read(report: str) -> tuple[list[Kernel], list[str]]:
    """Reads the output of `nvcc -Xptxas=-v`."""
    kernels, rest, entry, frame = [], [], None, (0, 0, 0)
    for line in report.splitlines():
        if found := ENTRY.match(line):
            entry, frame = found.groups(), (0, 0, 0)
        elif found := FRAME.match(line):
            # Properties of functions that are not inlined come here too: the worst counts for the kernel that follows.
            frame = tuple(max(pair) for pair in zip(frame, map(int, found.groups()), strict=True))
        elif found := USED.match(line):
            if entry is not None:
                shared = SHARED.search(line)
                kernels.append(Kernel(*entry, int(found[1]), int(shared[1]) if shared else 0, *frame))
            entry = None
        elif not SILENT.match(line):
            rest.append(line)
    names = demangle([kernel.name for kernel in kernels])
    return [Kernel(names[kernel.name], *list(vars(kernel).values())[1:]) for kernel in kernels], rest


def demangle(names: list[str]) -> dict[str, str]:
    """Readable names, where binutils' c++filt is there to tell them."""
    try:
        done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {name: name for name in names}
    return dict(zip(names, done.stdout.splitlines(), strict=True))
