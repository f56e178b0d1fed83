"""The bytes-and-operations model finds the law behind a table."""

import numpy as np
import pytest

from fastnas.errors import InputError
from fastnas.latency.roofline import FEWEST, bytes_of, fit

LAW = np.array([0.01, 2e-5, 3e-11, 1.5e-9])


def layers(count: int, seed: int = 0):
    """chain, operations and bytes, spread over orders of magnitude."""
    random = np.random.default_rng(seed)
    return random.uniform(8, 5000, count), 10 ** random.uniform(5, 10, count), 10 ** random.uniform(4, 8, count)


@pytest.mark.parametrize("absent", [None, 0, 1, 2, 3])
def test_the_law_behind_exact_times_is_found(absent):
    law = LAW.copy()
    if absent is not None:
        law[absent] = 0
    columns = layers(400)
    ms = np.stack([np.ones(400), *columns], 1) @ law
    found = fit(*columns, ms)
    assert (found.start, found.step, found.mac, found.byte) == pytest.approx(tuple(law), rel=1e-6, abs=1e-15)
    assert found.error < 1e-6
    assert found(*(column[0] for column in columns)) == pytest.approx(ms[0])
    assert found(0, 0, 0, launches=3) == pytest.approx(3 * law[0])


def test_noise_changes_little_and_is_what_the_error_says():
    columns, noise = layers(2000), np.random.default_rng(1).normal(1, 0.1, 2000).clip(0.5)
    found = fit(*columns, (np.stack([np.ones(2000), *columns], 1) @ LAW) * noise)
    assert (found.start, found.step, found.mac, found.byte) == pytest.approx(tuple(LAW), rel=0.15)
    assert found.error == pytest.approx(0.1645, rel=0.2), "90 % of a normal distribution with a deviation of 10 %"


def test_no_part_is_negative():
    columns = layers(200)
    found = fit(*columns, np.maximum(0.02 - 1e-6 * columns[0], 1e-3))  # falls with the chain: nothing of the model does
    assert min(found.start, found.step, found.mac, found.byte) >= 0


def test_too_few_layers_are_no_model():
    columns = layers(FEWEST - 1)
    assert fit(*columns, np.ones(FEWEST - 1)) is None


def test_precisions():
    assert (bytes_of("fp32"), bytes_of("fp16"), bytes_of("int8")) == (4, 2, 1)
    with pytest.raises(InputError, match="unknown precision 'fp12'"):
        bytes_of("fp12")
