"""The CUDA kernels of suppression, run on the CPU by the emulator, against the CPU kernels: their logic without a GPU.

Several blocks run at once and the order of their threads varies, so tiles meet each other decided and undecided.
"""

import ctypes
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastnas import ops
from tests.ops.nms_problems import KINDS, integral, padded, uniform

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 3


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> ctypes.CDLL:
    compiler = os.environ.get("CXX", "g++").split()[0]
    if not sys.platform.startswith("linux") or not shutil.which(compiler):
        pytest.skip("the emulator needs Linux and a C++ compiler")
    folder = tmp_path_factory.mktemp("emulator")
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    for path in (folder / "csrc").glob("cuda/*.cuh"):  # memory whose size the launch gives has no counterpart in C++
        text = re.sub(r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = emulator::dynamic_shared<\1>();", path.read_text())
        path.write_text(text)
    emulator = ROOT / "tests" / "ops" / "emulator"
    # No contraction, as -fmad=false of the real build: see EXACT_FLAGS in setup.py.
    flags = "-std=c++17 -O1 -ffp-contract=off -U_FORTIFY_SOURCE -shared -fPIC -pthread".split()
    library = folder / "kernels.so"
    command = [compiler, *flags, f"-I{emulator}", f"-I{folder}", str(emulator / "nms_kernels.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.emulated_soft_nms.restype = ctypes.c_int64
    return loaded


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def i64(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def emulated_nms(kernels, boxes, scores, threshold, most, idxs, least, sorted_before, seed):
    """[images, N, 4] ... as nms_padded. sorted_before: the way of more than 2048 boxes, which torch sorts."""
    images, count = scores.shape
    by_score, ranks, row_classes = (torch.full((images, count), -7) for _ in range(3))
    if sorted_before:
        by_score = scores.sort(dim=1, descending=True, stable=True).indices
        if idxs is not None:
            row_classes, ranks = idxs.gather(1, by_score).sort(dim=1, stable=True)
    indices, counts = torch.full((images, most), -7), torch.full((images,), -7)
    kernels.emulated_nms(
        pointer(boxes), pointer(scores), pointer(idxs), i64(images), i64(count), ctypes.c_double(threshold),
        ctypes.c_bool(least is not None), ctypes.c_float(least or 0), i64(most), ctypes.c_bool(sorted_before), pointer(by_score),
        pointer(ranks), pointer(row_classes), pointer(indices), pointer(counts), ctypes.c_uint(seed), ctypes.c_uint(WORKERS),
    )  # fmt: skip
    return indices, counts


@pytest.mark.parametrize("sorted_before", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nms(kernels, kind, sorted_before):
    for seed in range(24):
        pick = random.Random(seed).choice
        images, count = pick([1, 2, 3]), pick([1, 2, 63, 64, 65, 127, 150, 200, 300])
        boxes, scores = kind(images * count, seed)
        boxes, scores = boxes.reshape(images, count, 4), scores.reshape(images, count)
        classes = pick([None, 1, 2, 4, 5, 6, 100])
        idxs = None if classes is None else torch.arange(images * count).reshape(images, count) * 7 % classes * 1000 - 7
        arguments = pick([0.0, 0.1, 0.3, 0.5, 1.0]), pick([count, 5, count + 9]), idxs, pick([None, None, 0.4])
        expected = ops.nms_padded(boxes, scores, *arguments)
        result = emulated_nms(kernels, boxes, scores, *arguments, sorted_before, seed)
        assert torch.equal(result[0], expected[0]) and torch.equal(result[1], expected[1]), f"problem {seed}"


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("kind", [uniform, integral])
def test_nms_over_many_tiles(kernels, kind, classes):
    boxes, scores = kind(1500, seed=classes)
    boxes[:, ::2] *= 5
    idxs = (torch.arange(1500) % classes)[None]
    for seed in range(2):
        result = emulated_nms(kernels, boxes[None], scores[None], 0.4, 1500, idxs, None, False, seed)
        assert torch.equal(result[0][0, : result[1]], ops.batched_nms(boxes, scores, idxs[0], 0.4))


def test_collecting_in_several_passes(kernels):
    kept = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0)) < 0.3
    by_score = torch.stack([torch.randperm(20_000, generator=torch.Generator().manual_seed(1)) for _ in range(2)])
    for most in (100, 9000):
        indices, counts = torch.full((2, most), -7), torch.full((2,), -7)
        kernels.emulated_collect(
            pointer(kept), pointer(by_score), i64(2), i64(20_000), i64(most), pointer(indices), pointer(counts), ctypes.c_uint(3)
        )
        for image in range(2):
            chosen = by_score[image][kept[image]]
            assert torch.equal(indices[image], padded(chosen, most)) and counts[image] == min(most, len(chosen))


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_soft_nms(kernels, kind, gaussian):
    for seed in range(12):
        count = [1, 31, 33, 100, 150][seed % 5]
        boxes, scores = kind(count, seed)
        idxs = torch.arange(count) * 7 % 3 if seed % 2 else None
        threshold, sigma, least, most = 0.3, [0.5, 0.1][seed % 2], [0.001, 0.4][seed // 2 % 2], [count, 9][seed // 4 % 2]
        indices, rescored, decays = torch.full((most,), -7), torch.zeros(most), torch.zeros(most)
        chosen = kernels.emulated_soft_nms(
            pointer(boxes), pointer(scores), pointer(idxs), i64(count), ctypes.c_bool(gaussian), ctypes.c_double(threshold),
            ctypes.c_double(sigma), ctypes.c_float(least), i64(min(most, count)), ctypes.c_bool(seed % 3 > 0), pointer(indices),
            pointer(rescored), pointer(decays), ctypes.c_uint(32 if seed % 4 else 128), ctypes.c_uint(seed),
        )  # fmt: skip
        method = "gaussian" if gaussian else "linear"
        expected, expected_scores = ops.soft_nms(boxes, scores, method, threshold, sigma, least, most, idxs)
        assert torch.equal(indices[:chosen], expected), f"problem {seed}"
        assert torch.equal(rescored[:chosen], expected_scores)  # bit for bit: the same arithmetic on both devices
