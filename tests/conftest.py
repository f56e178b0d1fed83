"""Fixtures shared by all tests."""

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("fastnas", deadline=None, max_examples=50, derandomize=True)  # machines may be busy
hypothesis.settings.load_profile("fastnas")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Folder of the blood-cell photographs (public BCCD set in COCO form): annotations/ and images/."""
    root = Path(os.environ.get("FASTNAS_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    folder = root / "bccd"
    if not (folder / "annotations" / "instances_train.json").is_file():
        pytest.skip(f"no BCCD data set in {folder} (set FASTNAS_TEST_DATA to a folder that holds bccd/)")
    return folder
