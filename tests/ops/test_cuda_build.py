"""The CUDA sources compile without a warning, and no kernel keeps in local memory what belongs into registers.

The summary of the kernels is written to build/cuda-kernels-NAME.json and is a property of each test in pytest's XML report.
"""

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastnas.files import write_atomic
from tests.ops import ptxas

SOURCES = sorted(ptxas.ROOT.glob("csrc/cuda/*.cu"))
ARCHITECTURES = ["8.0", "9.0", "10.0", "12.0"]
# Kernels (by a part of their qualified name) that may use local memory, and why. Everything else is taken to be hot.
COLD: dict[str, str] = {}


@pytest.fixture(scope="module")
def setup():
    pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    return ptxas.load_setup()


@pytest.fixture(scope="module")
def toolkit(setup):
    found = setup["find_toolkit"](os.environ)
    if found is None:
        pytest.skip("no nvcc in CUDA_HOME or on the PATH")
    if setup["find_torch"]().cuda is None:
        pytest.skip("this torch is a build without CUDA: it has no headers for it")
    return found


def check(kernels: list[ptxas.Kernel], other_lines: list[str], architectures: list[str]) -> None:
    assert not other_lines, "nvcc warns:\n" + "\n".join(other_lines)
    assert {kernel.architecture for kernel in kernels} == {"sm_" + name.replace(".", "") for name in architectures}
    slow = [kernel for kernel in kernels if kernel.in_local_memory and not any(part in kernel.name for part in COLD)]
    assert not slow, "these kernels use local memory:\n" + "\n".join(map(str, slow))


def keep(name: str, kernels: list[ptxas.Kernel], record_property) -> None:
    for kernel in kernels:
        record_property(f"{kernel.architecture} {kernel.name}", f"{kernel.registers} registers, {kernel.shared} B shared")
    folder = ptxas.ROOT / "build"
    folder.mkdir(exist_ok=True)
    summary = [dataclasses.asdict(kernel) for kernel in kernels]
    write_atomic(folder / f"cuda-kernels-{name}.json", json.dumps(summary, indent=1) + "\n")


def test_there_are_cuda_sources():
    assert SOURCES


@pytest.fixture(scope="module")
def for_sm_90(setup, toolkit, tmp_path_factory):
    """Source -> its kernels, on their way in as many processes as there are cores."""
    folder = tmp_path_factory.mktemp("cubins")

    def compile_one(source):
        return ptxas.compile_source(ptxas.compile_command(setup, toolkit, source, "9.0", folder / f"{source.stem}.cubin"))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield {source: pool.submit(compile_one, source) for source in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_kernels_of_one_architecture(for_sm_90, source, record_property):
    """Device code alone: cheap enough for every run."""
    kernels, other_lines = for_sm_90[source].result()
    keep(f"{source.stem}-sm_90", kernels, record_property)
    check(kernels, other_lines, ["9.0"])


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_kernels_of_all_architectures(setup, toolkit, source, tmp_path, record_property):
    """As setup.py compiles it, for the host too."""
    known = [name for name in ARCHITECTURES if name.replace(".", "") in toolkit.architectures()]
    if known != ARCHITECTURES:
        pytest.skip(f"this nvcc knows only {known} of {ARCHITECTURES}")
    command = ptxas.compile_command(setup, toolkit, source, " ".join(ARCHITECTURES), tmp_path / "object.o")
    kernels, other_lines = ptxas.compile_source(command)
    keep(source.stem, kernels, record_property)
    check(kernels, other_lines, ARCHITECTURES)


def test_local_memory_and_warnings_are_seen(setup, toolkit, tmp_path):
    """What the tests above look for, in a kernel that has all of it."""
    source = tmp_path / "bad.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) bad(float* out, const int* at, int steps) {\n"
        "  int never_used;\n"
        "  float values[100];\n"
        "  for (int i = 0; i < 100; ++i) values[i] = out[i * 7];\n"
        "  for (int s = 0; s < steps; ++s) values[at[s] % 100] += out[at[s]];\n"
        "  for (int i = 0; i < 100; ++i) out[i] = values[i];\n"
        "}\n"
    )
    kernels, other_lines = ptxas.compile_source(ptxas.compile_command(setup, toolkit, source, "9.0", tmp_path / "bad.cubin"))
    assert [kernel.architecture for kernel in kernels] == ["sm_90"]
    assert kernels[0].in_local_memory and kernels[0].name.startswith("bad(")
    assert any("never_used" in line for line in other_lines)
    with pytest.raises(AssertionError, match="nvcc warns"):
        check(kernels, other_lines, ["9.0"])
    with pytest.raises(AssertionError, match="use local memory"):
        check(kernels, [], ["9.0"])


def test_a_report_is_read():
    report = """\
ptxas info    : 8 bytes gmem
ptxas info    : Compiling entry function '_Z3foof' for 'sm_80'
ptxas info    : Function properties for _Z3foof
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 4096 bytes smem, 380 bytes cmem[0]
ptxas info    : Compile time = 10.3 ms
ptxas info    : Compiling entry function 'bar' for 'sm_120'
ptxas info    : Function properties for bar
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 380 bytes cmem[0]
nms.cuh(3): warning #177-D: variable "x" was declared but never referenced
"""
    kernels, other_lines = ptxas.read(report)
    spilled, clean = kernels
    assert dataclasses.astuple(spilled)[1:] == ("sm_80", 255, 4096, 16, 12, 20) and spilled.in_local_memory
    assert dataclasses.astuple(clean) == ("bar", "sm_120", 8, 0, 0, 0, 0) and not clean.in_local_memory
    assert other_lines == ['nms.cuh(3): warning #177-D: variable "x" was declared but never referenced']
