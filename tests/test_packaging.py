"""What setup.py decides and builds, and that the pinned versions and the metadata agree."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastnas.ops import build_info

ROOT = Path(__file__).parents[1]
CPU, CUDA = (Path(build_info()[device]["library"]) for device in ("cpu", "cuda"))


@pytest.fixture(scope="session")
def build():
    """setup.py as a module (it builds only when run)."""
    pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    spec = importlib.util.spec_from_file_location("fastnas_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return path


def fake_nvcc(home: Path) -> Path:
    """Answers as nvcc does: --dryrun names the real folder, wherever the call came from."""
    return write_script(
        home / "bin" / "nvcc",
        f"""case "$*" in
  *--dryrun*) echo '#$ _HERE_={home}/bin' >&2; echo '#$ TOP={home}/bin/..' >&2 ;;
  *--version*) echo 'Cuda compilation tools, release 12.8, V12.8.93' ;;
  *--list-gpu-arch*) printf 'compute_80\\ncompute_90\\n' ;;
esac
""",
    )


# ----------------------------------------------------------------------------------------------------------------------
# Whether to build for CUDA


@pytest.mark.parametrize(
    ("environ", "torch_cuda", "has_nvcc", "expected"),
    [
        ({}, "13.0", True, True),
        ({}, None, True, False),
        ({}, "13.0", False, False),
        ({"USE_CUDA": "0"}, "13.0", True, False),
        ({"USE_CUDA": "1"}, None, True, False),
        ({"FORCE_CUDA": "1"}, None, True, True),
        ({"FORCE_CUDA": "0"}, None, True, False),
        ({"USE_CUDA": "0", "FORCE_CUDA": "1"}, "13.0", True, False),
    ],
)
def test_cuda_wish(build, environ, torch_cuda, has_nvcc, expected):
    toolkit = build.Toolkit(Path("nvcc"), Path("/toolkit")) if has_nvcc else None
    wish = build.cuda_wish(environ, torch_cuda, toolkit)
    assert wish.build == expected
    assert wish.forced == (expected and environ.get("FORCE_CUDA") == "1")
    assert wish.reason


def test_forcing_without_nvcc_says_what_is_missing(build):
    with pytest.raises(build.BuildError, match="no nvcc: install a CUDA toolkit or set CUDA_HOME"):
        build.cuda_wish({"FORCE_CUDA": "1"}, "13.0", None)


def test_toolkit_behind_a_wrapper_script(build, tmp_path):
    home = tmp_path / "real toolkit"
    wrapper = write_script(tmp_path / "bin" / "nvcc", f'exec "{fake_nvcc(home)}" "$@"\n')
    toolkit = build.find_toolkit({"PATH": f"{wrapper.parent}:/usr/bin:/bin"})
    assert toolkit.home == home
    assert toolkit.version() == "12.8.93"
    assert toolkit.architectures() == {"80", "90"}


def test_cuda_home_goes_before_the_path(build, tmp_path):
    on_path, chosen = fake_nvcc(tmp_path / "one"), fake_nvcc(tmp_path / "two")
    environ = {"PATH": f"{on_path.parent}:/usr/bin:/bin", "CUDA_HOME": str(tmp_path / "two")}
    assert build.find_toolkit(environ).nvcc == chosen
    assert build.find_toolkit(environ | {"CUDA_HOME": str(tmp_path / "empty")}) is None
    assert build.find_toolkit({"PATH": str(tmp_path)}) is None


def test_architectures(build):
    known = {"80", "90", "100"}
    assert build.architecture_flags(None, known) == [
        f"-gencode=arch=compute_{number},code=sm_{number}" for number in (80, 90, 100)
    ]
    assert build.architecture_flags("8.0;9.0a+PTX", known) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]
    with pytest.raises(build.BuildError, match="cannot read 'Hopper'"):
        build.architecture_flags("Hopper", known)
    with pytest.raises(build.BuildError, match="does not know 12.0"):
        build.architecture_flags("12.0", known)
    with pytest.raises(build.BuildError, match="knows none of"):
        build.architecture_flags(None, {"52"})


def test_build_record_is_one_safe_c_string(build):
    assert build._c_string('g++ "x"\\\nä') == '"g++ ?x????"'


# ----------------------------------------------------------------------------------------------------------------------
# What was built


def tool(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"no {name}")


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def built_cuda() -> str:
    if not CUDA.is_file():
        pytest.skip(build_info()["cuda"]["problem"])
    return str(CUDA)


def undefined_symbols(library: str) -> set[str]:
    lines = output(tool("nm"), "-D", "--undefined-only", library).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines}


def needed(library: str) -> set[str]:
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", output(tool("readelf"), "-d", library)))


@pytest.mark.parametrize("library", [str(CPU), str(CUDA)], ids=["cpu", "cuda"])
def test_libraries_use_only_the_stable_abi(library):
    if library == str(CUDA):
        built_cuda()
    symbols = undefined_symbols(library)
    python = {name for name in symbols if re.match(r"_?Py[A-Z_]", name)}
    assert not python
    # Of torch only C functions: everything in its C++ namespaces changes from version to version.
    assert not {name for name in symbols if re.match(r"_ZNK?(2at|3c10|5torch)", name)}
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in symbols)
    assert not any("python" in name for name in needed(library))


def test_cpu_library_does_not_need_cuda():
    libraries = needed(str(CPU))
    assert "libtorch_cpu.so" in libraries
    assert not [name for name in libraries if "cuda" in name]


def test_cuda_library_holds_code_for_every_architecture():
    library = built_cuda()
    assert ".nv_fatbin" in output(tool("readelf"), "-S", "-W", library)
    assert re.search(r"sm_\d+", build_info()["cuda"]["build"])
    cuobjdump = shutil.which("cuobjdump")
    if cuobjdump:
        listed = set(re.findall(r"sm_\d+[af]?", output(cuobjdump, "--list-elf", library)))
        assert listed == set(re.findall(r"sm_\d+[af]?", build_info()["cuda"]["build"]))


@pytest.mark.slow
def test_a_broken_toolkit_costs_only_the_cuda_library(tmp_path):
    """With an nvcc that fails, the CPU library is built and records why; FORCE_CUDA makes it an error."""
    pytest.importorskip("setuptools")
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "fastnas" / "ops").mkdir(parents=True)
    (tmp_path / "fastnas" / "__init__.py").write_text('__version__ = "0"\n')
    stale = tmp_path / "fastnas" / "ops" / CUDA.name
    stale.write_bytes(b"of an earlier build")
    nvcc = fake_nvcc(tmp_path / "toolkit")
    nvcc.write_text(nvcc.read_text() + 'case "$*" in *-c\\ *) echo "fatal error: no ptxas here" >&2; exit 1 ;; esac\n')

    def run_build(**environ: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        whole = {key: value for key, value in os.environ.items() if key not in ("USE_CUDA", "FORCE_CUDA")} | environ
        return subprocess.run(command, cwd=tmp_path, env=whole, capture_output=True, text=True, timeout=300)

    forced = run_build(CUDA_HOME=str(tmp_path / "toolkit"), FORCE_CUDA="1")
    assert forced.returncode != 0 and "no ptxas here" in forced.stderr
    done = run_build(CUDA_HOME=str(tmp_path / "toolkit"), FORCE_CUDA="0", TORCH_CUDA_ARCH_LIST="8.0")
    assert done.returncode == 0, done.stderr
    library = (tmp_path / "fastnas" / "ops" / CPU.name).read_bytes()
    if build_info()["torch_cuda"] is not None:
        assert "going on without the CUDA library" in done.stderr
        assert b"CUDA library: its build failed: nvcc failed: fatal error: no ptxas here" in library
    else:
        assert b"CUDA library: this torch is a build without CUDA" in library
    assert not stale.exists()


# ----------------------------------------------------------------------------------------------------------------------
# Metadata


def test_every_dependency_is_pinned_exactly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"] + ["setuptools"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    pinned = {line.partition("==")[0] for line in lines}
    names = {re.match(r"[\w-]+", wish)[0].lower() for wish in wanted}
    assert names <= pinned
    assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-", "triton"))]  # torch pins these itself


def test_the_command_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"fastnas": "fastnas.cli:main"}
    assert project["requires-python"] == ">=3.11"


def test_make_refuses_an_old_python_with_one_line(tmp_path):
    make = tool("make")
    old = write_script(tmp_path / "python3", 'case "$1" in -V) echo "Python 3.8.10" ;; esac; exit 1\n')
    for name in ("python3.11", "python3.12", "python3.13"):
        shutil.copy(old, tmp_path / name)
    for name in ("Makefile", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "csrc").mkdir()
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CXX": "sh"}
    done = subprocess.run([make, "-s", "venv"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer (python3 is Python 3.8.10)" in done.stderr
    environ["CXX"] = "no-such-compiler"
    done = subprocess.run([make, "-s", "venv"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert "no C++ compiler (no-such-compiler)" in done.stderr
    assert not (tmp_path / ".venv").exists()
