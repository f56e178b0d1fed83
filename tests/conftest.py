"""Fixtures shared by all tests."""

import os
import signal
from pathlib import Path

import pytest

try:
    import hypothesis
except ImportError:
    pass  # a GPU machine may lack it: only the files that draw from it cannot be read then
else:
    hypothesis.settings.register_profile("fastnas", deadline=None, max_examples=50, derandomize=True)  # machines may be busy
    hypothesis.settings.load_profile("fastnas")


# A shell's background jobs ignore Ctrl-C and hand that down: the programs that the tests interrupt would never notice.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Folder of the blood-cell photographs (public BCCD set in COCO form): annotations/ and images/."""
    root = Path(os.environ.get("FASTNAS_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    folder = root / "bccd"
    if not (folder / "annotations" / "instances_train.json").is_file():
        pytest.skip(f"no BCCD data set in {folder} (set FASTNAS_TEST_DATA to a folder that holds bccd/)")
    return folder


@pytest.fixture(scope="session")
def faster_rcnn_twins():
    """(ours, torchvision's) Faster R-CNN R50-FPN with the same weights, for images of 192x256."""
    from tests.twins import faster_rcnn_twins

    return faster_rcnn_twins()


@pytest.fixture(scope="session")
def retinanet_twins():
    """(ours, torchvision's) RetinaNet R50-FPN with the same weights, for images of 192x256."""
    from tests.twins import retinanet_twins

    return retinanet_twins()


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A small generated data set: 24 training and 12 validation images of 64x80 with three classes."""
    from fastnas.data.shapes import generate

    return generate(tmp_path_factory.mktemp("data") / "shapes", seed=1, train=24, val=12, size=(64, 80), classes=3)
