"""Loading of the operator libraries: late, and with a message that helps when they are not there."""

import shutil
import subprocess
import sys
from pathlib import Path

import fastnas
from fastnas import ops


def run(code: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_importing_fastnas_does_not_load_torch():
    root = Path(fastnas.__file__).parents[1]
    done = run("import fastnas, sys; assert 'torch' not in sys.modules, 'torch was loaded'", cwd=root)
    assert done.returncode == 0, done.stderr


def test_ops_do_not_load_torchvision():
    root = Path(fastnas.__file__).parents[1]
    done = run("import fastnas.ops, sys; assert 'torchvision' not in sys.modules, 'torchvision was loaded'", cwd=root)
    assert done.returncode == 0, done.stderr


def test_build_info():
    info = ops.build_info()
    assert info["cpu"]["loaded"] and info["cpu"]["problem"] is None
    assert "headers of torch" in info["cpu"]["build"] and "CUDA library:" in info["cpu"]["build"]
    assert info["cuda"]["loaded"] == (info["cuda"]["problem"] is None)


def test_missing_library_says_how_to_build_it(tmp_path):
    # A copy of the package without its libraries: importing and asking work, computing tells what to do.
    package = Path(fastnas.__file__).parent
    copy = tmp_path / "fastnas"
    (copy / "ops").mkdir(parents=True)
    for path in [*package.glob("*.py"), *package.glob("ops/*.py")]:
        shutil.copy(path, copy / path.relative_to(package))
    done = run(
        "import torch, fastnas.ops as ops\n"
        "from fastnas.errors import FastnasError\n"
        "info = ops.build_info()\n"
        "assert not info['cpu']['loaded'] and not info['cuda']['loaded'], info\n"
        "for call in (lambda: ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5),\n"
        "             lambda: ops.roi_align(torch.zeros(1, 1, 2, 2), torch.zeros(1, 5), 1)):\n"
        "    try:\n        call()\n        raise SystemExit('no error')\n"
        "    except FastnasError as error:\n"
        "        assert 'pip install .' in str(error) and '\\n' not in str(error), error\n",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_damaged_library_is_a_problem_and_no_crash(tmp_path):
    from fastnas.ops._library import load_problem

    damaged = tmp_path / "libfastnas_cuda.so"
    damaged.write_bytes(b"not a library")
    problem = load_problem(damaged)
    assert problem is not None and "cannot be loaded" in problem and "\n" not in problem
