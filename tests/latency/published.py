"""A table of single convolutions in TinyNAS's format, made from a law that tests know; and where the real one lies."""

import math
import os
from pathlib import Path

import pytest

START, STEP, MAC, BYTE = 0.01, 2e-5, 3e-11, 1.5e-9  # milliseconds: of any layer, a link, a multiply-add, a byte
DEPTHWISE_MAC = 4e-10
RATIOS, CHANNELS, SIDES = (0.25, 0.5, 1, 2, 4), (16, 32, 64, 128, 256), (8, 16, 32, 64, 128)


def law(cin: int, height: int, width: int, cout: int, kernel: int, stride: int, added: int, depthwise: bool = False) -> float:
    """Milliseconds of a convolution in half precision."""
    chain = kernel**2 * (1 if depthwise else cin)
    outputs = cout * math.ceil(height / stride) * math.ceil(width / stride)
    traffic = cin * height * width + outputs * (1 + added) + cout * (chain + 1)
    return START + STEP * chain * (not depthwise) + (DEPTHWISE_MAC if depthwise else MAC) * outputs * chain + 2 * BYTE * traffic


def lines() -> list[str]:
    """All lines of the table. The largest maps of the widest layers were not measured."""
    found = []
    for kernel in (1, 3, 7):
        for stride in (1, 2):
            for side in SIDES:
                for cout in CHANNELS:
                    for cin in [3, *(int(ratio * cout) for ratio in RATIOS)]:
                        for added in (0, 1):
                            ms = law(cin, side, side, cout, kernel, stride, added) if cin * side <= 512 * 64 else -1
                            found.append(_line("Regular", cin, side, cout, kernel, stride, added, ms))
                    ms = law(cout, side, side, cout, kernel, stride, 0, depthwise=True)
                    found.append(_line("Depthwise", cout, side, cout, kernel, stride, 0, ms))
    return found


def _line(kind: str, cin: int, side: int, cout: int, kernel: int, stride: int, added: int, ms: float) -> str:
    return f"{{{kind},1,{cin},{side},{side},{cout},{kernel},{stride},{added}}} {ms:.9g}"


def real(precision: str) -> Path:
    """TinyNAS's own file, where this machine has it."""
    root = Path(os.environ.get("FASTNAS_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
    path = root / "tensorrt-v100" / f"conv_{precision}.txt"
    if not path.is_file():
        pytest.skip(f"no {path} (set FASTNAS_TEST_DATA to a folder that holds tensorrt-v100/)")
    return path
