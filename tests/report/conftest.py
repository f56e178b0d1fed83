"""Fixtures of the report's tests."""

import pytest

from fastnas.search.study import Study
from tests.report.studies import CONFIG, grow


@pytest.fixture
def study(tmp_path):
    """A new study without candidates, open for writing."""
    with Study.create(tmp_path / "study", "spnas", CONFIG) as created:
        yield created


@pytest.fixture
def grown(study):
    """A study of 16 candidates: finished ones, a failed one, rejected ones; the front has full trainings."""
    grow(study, 16)
    return study
