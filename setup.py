"""Builds what is native: two plain shared libraries of operators on torch's stable ABI, and one small Python module.

    fastnas/ops/libfastnas_cpu.so    always
    fastnas/ops/libfastnas_cuda.so   where CUDA is to be had, see `cuda_wish`
    fastnas/_core.*.so               always: pricing without tensors, by pybind11

The libraries have no Python in them: one build serves every torch >= 2.11, and torch.utils.cpp_extension (which links a Python
module) is not needed: the compilers are called directly. Everything else about the package is in pyproject.toml.

Environment: USE_CUDA=0 (never), FORCE_CUDA=1 (always, or fail), CUDA_HOME, TORCH_CUDA_ARCH_LIST, CXX, CXXFLAGS,
MAX_JOBS.
"""

import hashlib
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "0x020b000000000000"  # the stable ABI of torch 2.11, the oldest that is supported
DEFAULT_ARCHITECTURES = "8.0 9.0 10.0 12.0"
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wextra".split()
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler=-fPIC,-fvisibility=hidden,-Wall --threads=2".split()
# Decisions of equality with torchvision hang on each rounding here, so no fused multiply-adds: see csrc/geometry.h.
EXACT_FLAGS = {
    "csrc/cpu/nms.cpp": ["-ffp-contract=off"],
    "csrc/cpu/soft_nms.cpp": ["-ffp-contract=off"],
    "csrc/cuda/nms.cu": ["-fmad=false"],
    "csrc/cuda/soft_nms.cu": ["-fmad=false"],
}

CPU, CUDA, CORE = "fastnas.ops.libfastnas_cpu", "fastnas.ops.libfastnas_cuda", "fastnas._core"


class BuildError(Exception):
    """The libraries cannot be built. The message is one line."""


# ----------------------------------------------------------------------------------------------------------------------
# What is there: torch, nvcc


@dataclass(frozen=True)
class Torch:
    folder: Path
    version: str
    cuda: str | None  # "13.0", or None for a build without CUDA


def find_torch() -> Torch:
    """Torch's folder and versions without importing it (that takes seconds)."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("torch is not installed: `pip install torch`, or install without --no-build-isolation")
    folder = Path(next(iter(spec.submodule_search_locations)))
    versions = runpy.run_path(str(folder / "version.py"))
    return Torch(folder, versions["__version__"], versions.get("cuda"))


@dataclass(frozen=True)
class Toolkit:
    nvcc: Path
    home: Path

    def version(self) -> str:
        found = re.search(r"release [\d.]+, V([\d.]+)", _output([str(self.nvcc), "--version"]))
        return found[1] if found else "unknown"

    def architectures(self) -> set[str]:
        return set(re.findall(r"compute_(\d+[af]?)", _output([str(self.nvcc), "--list-gpu-arch"])))


def find_toolkit(environ: Mapping[str, str]) -> Toolkit | None:
    """The CUDA toolkit of CUDA_HOME (or CUDA_PATH), else of the nvcc on the PATH."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name):
            home = Path(environ[name])
            return Toolkit(home / "bin" / "nvcc", home) if (home / "bin" / "nvcc").is_file() else None
    found = shutil.which("nvcc", path=environ.get("PATH", ""))
    return Toolkit(Path(found), _toolkit_home(Path(found))) if found else None


def _toolkit_home(nvcc: Path) -> Path:
    # The nvcc on the PATH may be a link or a small script that runs the real one; only that one knows where it lives.
    found = re.search(r"^#\$ TOP=(.+)$", _output([str(nvcc), "--dryrun", "-x", "cu", os.devnull]), re.MULTILINE)
    return Path(found[1].strip().strip('"')).resolve() if found else nvcc.resolve().parent.parent


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stdout + done.stderr


# ----------------------------------------------------------------------------------------------------------------------
# What to build


@dataclass(frozen=True)
class Wish:
    build: bool
    forced: bool  # then a failure is an error
    reason: str


def cuda_wish(environ: Mapping[str, str], torch_cuda: str | None, toolkit: Toolkit | None) -> Wish:
    """Whether to build the CUDA library. A GPU need not be there. USE_CUDA=0 wins over FORCE_CUDA=1."""
    if environ.get("USE_CUDA") == "0":
        return Wish(False, False, "USE_CUDA=0")
    if environ.get("FORCE_CUDA", "0") not in ("", "0"):
        if toolkit is None:
            raise BuildError("FORCE_CUDA is set but there is no nvcc: install a CUDA toolkit or set CUDA_HOME to it")
        return Wish(True, True, "FORCE_CUDA")
    if torch_cuda is None:
        return Wish(False, False, "this torch is a build without CUDA")
    if toolkit is None:
        return Wish(False, False, "no nvcc in CUDA_HOME or on the PATH")
    return Wish(True, False, f"nvcc {toolkit.nvcc} and torch with CUDA {torch_cuda}")


def architecture_flags(requested: str | None, known: set[str]) -> list[str]:
    """nvcc's -gencode flags for TORCH_CUDA_ARCH_LIST ("8.0 9.0a;12.0+PTX"); the default is cut to what nvcc knows."""
    flags = []
    for name in re.split(r"[;, ]+", (requested or DEFAULT_ARCHITECTURES).strip()):
        parsed = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", name)
        if not parsed:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: cannot read {name!r}, expected such as 8.0 or 9.0a or 12.0+PTX")
        number = "".join(parsed.group(1, 2))
        if number not in known and parsed[3] == "":
            if requested:
                raise BuildError(f"TORCH_CUDA_ARCH_LIST: this nvcc does not know {name}")
            continue
        number += parsed[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if parsed[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    if not flags:
        raise BuildError(f"this nvcc knows none of the architectures {DEFAULT_ARCHITECTURES}: set TORCH_CUDA_ARCH_LIST")
    return flags


def extensions() -> list[Extension]:
    """CUDA first: the CPU library records what became of it. A library depends on its own headers and on those that all share."""

    def library(name: str, folder: str, patterns: list[str]) -> Extension:
        headers = [*ROOT.glob("csrc/*.h"), *ROOT.glob(f"csrc/{folder}/*.*h")]
        depends = sorted(str(path.relative_to(ROOT)) for path in headers)
        sources = sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))
        return Extension(name, sources, depends=depends)

    return [
        library(CUDA, "cuda", ["csrc/record.cpp", "csrc/cuda/*.cu"]),
        library(CPU, "cpu", ["csrc/record.cpp", "csrc/library.cpp", "csrc/cpu/*.cpp"]),
        library(CORE, "core", ["csrc/core/*.cpp"]),
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Building


class BuildLibraries(build_ext):
    """Compiles sources in parallel, links each library, and skips objects that are newer than what they are made of."""

    def run(self) -> None:
        try:
            self.torch = find_torch()
            self.cxx = shlex.split(os.environ.get("CXX", "g++"))
            if not shutil.which(self.cxx[0]):
                raise BuildError(f"no C++ compiler {self.cxx[0]!r}: install g++ or set CXX")
            self.toolkit = find_toolkit(os.environ)
            self.wish = cuda_wish(os.environ, self.torch.cuda, self.toolkit)
        except BuildError as error:
            raise CompileError(f"fastnas: {error}") from None
        self.cuda_outcome = self.wish.reason if not self.wish.build else ""
        self.in_source = bool(self.inplace or self.editable_mode)
        if self.in_source:
            self.build_temp = str(ROOT / "build" / "objects")  # kept: building again compiles only what has changed
        super().run()

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.endswith("_core"):
            return super().get_ext_filename(fullname)
        return fullname.replace(".", "/") + ".so"  # no Python version in the name: there is no Python in it

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            if ext.name == CPU:
                self._build_cpu(ext, target)
            elif ext.name == CORE:
                self._build_core(ext, target)
            elif self.wish.build:
                self._build_cuda(ext, target)
                self.cuda_outcome = "built"
            else:
                print(f"fastnas: no CUDA library ({self.wish.reason})", file=sys.stderr)
                self._leave_out(ext, target)
        except BuildError as error:
            if ext.name != CUDA or self.wish.forced:
                raise CompileError(f"fastnas: {error}") from None
            print(f"fastnas: WARNING: going on without the CUDA library: {error}", file=sys.stderr)
            self.cuda_outcome = f"its build failed: {str(error)[:300]}"
            self._leave_out(ext, target)

    def _leave_out(self, ext: Extension, target: Path) -> None:
        ext.optional = True  # else copying it into the source folder would fail
        target.unlink(missing_ok=True)  # one from an earlier build would be packed
        if self.in_source:
            (ROOT / self.get_ext_filename(ext.name)).unlink(missing_ok=True)  # or loaded

    def _build_cpu(self, ext: Extension, target: Path) -> None:
        compiler = _output([*self.cxx, "--version"]).partition("\n")[0]
        record = f"{compiler}; headers of torch {self.torch.version}; CUDA library: {self.cuda_outcome}"
        hide = f"-ffile-prefix-map={self.torch.folder}=torch"  # no folders of this machine in error messages
        flags = [*CXX_FLAGS, hide, *self._torch_flags(), *shlex.split(os.environ.get("CXXFLAGS", ""))]
        objects = self._compile(ext, lambda source: [*self.cxx, *flags], record)
        self._link(objects, target, ["torch_cpu", "c10"], [])

    def _build_cuda(self, ext: Extension, target: Path) -> None:
        architectures = architecture_flags(os.environ.get("TORCH_CUDA_ARCH_LIST"), self.toolkit.architectures())
        names = " ".join(flag.rpartition("=")[2] for flag in architectures)
        record = f"nvcc {self.toolkit.version()}; headers of torch {self.torch.version}; {names}"
        nvcc = [str(self.toolkit.nvcc), "-ccbin", self.cxx[0], *NVCC_FLAGS, *architectures]
        nvcc += [*self._torch_flags(), "-DUSE_CUDA"]
        cxx = [*self.cxx, *CXX_FLAGS]
        objects = self._compile(ext, lambda source: nvcc if source.endswith(".cu") else cxx, record)
        self._link(objects, target, ["torch_cuda", "torch_cpu", "c10", "cudart"], [self.toolkit.home / "lib64"])

    def _build_core(self, ext: Extension, target: Path) -> None:
        try:
            import pybind11
        except ImportError:
            raise BuildError("pybind11 is not installed: `pip install pybind11`, or install without --no-build-isolation") from None
        include = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
        objects = self._compile(ext, lambda source: [*self.cxx, *CXX_FLAGS, *include], "")
        self._link(objects, target, [], [])

    def _torch_flags(self) -> list[str]:
        return [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", "-isystem", str(self.torch.folder / "include")]

    def _compile(self, ext: Extension, command_for, record: str) -> list[str]:
        newest = max((ROOT / path).stat().st_mtime for path in ext.depends)

        def compile_one(source: str) -> str:
            command = [*command_for(source), *EXACT_FLAGS.get(source, [])]
            if source == "csrc/record.cpp":
                command.append("-DFASTNAS_BUILD_RECORD=" + _c_string(record))
            key = hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
            target = Path(self.build_temp, key, source).with_suffix(".o")
            if target.is_file() and target.stat().st_mtime > max(newest, (ROOT / source).stat().st_mtime):
                return str(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            _run([*command, "-c", source, "-o", str(target)])
            return str(target)

        jobs = int(os.environ.get("MAX_JOBS") or min(os.cpu_count() or 1, 8))
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(compile_one, ext.sources))

    def _link(self, objects: list[str], target: Path, libraries: list[str], folders: list[Path]) -> None:
        # No rpath: torch has loaded its libraries before it loads this one, and the names are enough to find them.
        target.parent.mkdir(parents=True, exist_ok=True)
        search = [f"-L{folder}" for folder in [self.torch.folder / "lib", *folders]]
        temporary = target.with_suffix(".so.tmp")
        _run([*self.cxx, "-shared", "-o", str(temporary), *objects, *search, *(f"-l{name}" for name in libraries)])
        os.replace(temporary, target)  # a running process keeps the library it has mapped


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        print("\n".join([shlex.join(command), *lines]), file=sys.stderr)
        first = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
        raise BuildError(f"{Path(command[0]).name} failed: {first.strip()}")
    if done.stderr.strip():
        print(done.stderr.rstrip(), file=sys.stderr)


def _c_string(text: str) -> str:
    return '"' + re.sub(r'[^ -~]|["\\]', "?", text) + '"'


class CopyConfigs(build_py):
    """An installed fastnas finds the files of configs/ in fastnas/configs/; a source folder has them beside it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source in sorted((ROOT / "configs").glob("*.yaml")):
                target = Path(self.build_lib, "fastnas", "configs", source.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


if __name__ == "__main__":
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildLibraries, "build_py": CopyConfigs},
    )
