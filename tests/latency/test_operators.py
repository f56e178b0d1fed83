"""Blocks as the sum of their layers, in a table whose law is known."""

import math
from dataclasses import dataclass

import pytest

from fastnas.blueprint.blocks import BoxHead, FpnLevel, MobileBlock, Residual, RoiPool, Spec
from fastnas.blueprint.operators import Conv, Linear, Operator, Pass
from fastnas.errors import InputError
from fastnas.latency.estimate import QUANTILE, Estimate, summed
from fastnas.latency.operators import GUESS, OperatorPrices
from fastnas.latency.table import LatencyTable
from fastnas.latency.timing import Timing
from tests.latency.published import law


@pytest.fixture(scope="module")
def prices(published_table):
    table = LatencyTable(published_table, writable=False)
    [description] = [{key: value for key, value in one.items() if key != "entries"} for one in table.environments()]
    yield OperatorPrices(table, table.environment(description), description)
    table.close()


def test_a_block_of_measured_layers_is_their_sum(prices):
    block = prices.block(Residual("basic", 32, 64, 2, "bn"), ((1, 32, 32, 32),))
    layers = [law(32, 32, 32, 64, 1, 2, 0), law(32, 32, 32, 64, 3, 2, 0), law(64, 16, 16, 64, 3, 1, 1)]
    assert block.median_ms == pytest.approx(sum(layers))
    assert (block.interpolated, block.modelled, block.doubt, block.spread) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "conv, shape",
    [
        (Conv(48, 48, 3), (1, 48, 32, 32)),  # channels between lines
        (Conv(64, 64, 3, 2, 1, "relu"), (1, 64, 40, 40)),  # side between lines
        (Conv(96, 40, 1, 1, 1, "silu"), (1, 96, 50, 50)),  # all three
        (Conv(48, 48, 7, 1, 48), (1, 48, 20, 20)),  # depthwise
        (Conv(3, 24, 7, 2), (1, 3, 100, 100)),  # of an image
    ],
)
def test_between_the_lines_it_is_interpolated(prices, conv, shape):
    found = prices.layer(conv, (shape,))
    true = law(conv.in_channels, *shape[2:], conv.out_channels, conv.kernel, conv.stride, 0, conv.groups > 1)
    assert found.median_ms == pytest.approx(true, rel=0.03)
    assert (found.interpolated, found.modelled) == (1.0, 0.0) and found.spread >= 0


def test_maps_of_one_area_cost_the_same(prices):
    conv = Conv(64, 64, 3)
    square, wide, many = (prices.layer(conv, (shape,)) for shape in [(1, 64, 48, 48), (1, 64, 24, 96), (4, 64, 24, 24)])
    assert wide.median_ms == many.median_ms == square.median_ms and wide.interpolated == 1.0


@pytest.mark.parametrize(
    "conv, shape",
    [(Conv(64, 64, 3), (1, 64, 600, 600)), (Conv(1024, 512, 1), (1, 1024, 16, 16)), (Conv(64, 64, 5), (1, 64, 16, 16))],
)
def test_beyond_the_table_the_model_goes_on(prices, conv, shape):
    found = prices.layer(conv, (shape,))
    assert found.median_ms == pytest.approx(law(shape[1], *shape[2:], conv.out_channels, conv.kernel, 1, 0), rel=0.05)
    assert (found.interpolated, found.modelled) == (0.0, 1.0) and found.doubt == prices.models[False].error


def test_what_the_table_holds_nothing_of_is_modelled_and_doubted(prices):
    dense, depthwise = (prices.models[kind] for kind in (False, True))
    grouped = prices.layer(Conv(128, 128, 3, 1, 32), ((1, 128, 32, 32),))
    bounds = sorted(
        model(4 * 9, 128 * 32 * 32 * 36, 2 * (2 * 128 * 32 * 32 + 128 * 37)) for model in (dense, depthwise)
    )
    assert bounds[0] < grouped.median_ms < bounds[1] < grouped.median_ms * (1 + grouped.doubt)
    linear = prices.layer(Linear(256, 128, "relu"), ((1000, 256, 1, 1),))
    assert linear.median_ms == pytest.approx(law(256, 1000, 1, 128, 1, 1, 0), rel=0.05) and linear.modelled == 1.0
    pool = prices.layer(Pass("max-pool", (1, 64, 16, 16), 3), ((1, 64, 32, 32),))
    assert pool.modelled == 1.0 and pool.doubt == depthwise.error
    regions = prices.layer(RoiPool((4, 8)), ((1, 64, 32, 32), (1, 64, 16, 16), (100, 4)))
    assert regions.doubt == GUESS and regions.median_ms > depthwise.start


@pytest.mark.parametrize(
    "spec, shapes",
    [
        (FpnLevel(64, 32, False, True), ((1, 64, 20, 30), (1, 32, 10, 15))),
        (MobileBlock(32, 32, 6, 5, 1, "same", "tf"), ((1, 32, 20, 30),)),
        (BoxHead(32, 7, 128, 11), ((50, 32, 7, 7),)),
        (Residual("resnext32x4d", 256, 64, 1, "gn"), ((1, 256, 16, 16),)),
    ],
)
def test_shares_and_doubts_of_a_block_are_those_of_its_layers(prices, spec, shapes):
    parts = [prices.layer(operator, inputs) for operator, inputs in spec.operators(shapes)]
    block, total = prices.block(spec, shapes), sum(part.median_ms for part in parts)
    assert block.median_ms == pytest.approx(total)
    for what in ("doubt", "interpolated", "modelled"):
        assert getattr(block, what) == pytest.approx(sum(p.median_ms * getattr(p, what, 0.0) for p in parts) / total)
    assert block.interpolated + block.modelled <= 1 + 1e-9
    assert block.spread * total == pytest.approx(math.hypot(*(part.median_ms * part.spread for part in parts)))


def test_sums_of_measured_and_estimated_parts():
    block = summed([Timing(3.0, 3.0, 0.1, 9), Estimate(1.0, 1.0, 0.2, 1, 0.4, 1.0, 0.0)])
    assert block.median_ms == 4.0 and block.spread == pytest.approx(math.hypot(0.3, 0.2) / 4)
    assert (block.doubt, block.interpolated, block.modelled) == (0.1, 0.25, 0.0)


def test_a_kind_that_does_not_say_its_operators_is_refused_by_name(prices):
    @dataclass(frozen=True)
    class Unknown(Spec):
        op = "unheard-of"

    with pytest.raises(InputError, match="unheard-of"):
        prices.block(Unknown(), ((1, 3, 8, 8),))


def test_an_operator_of_another_kind_is_priced_by_what_it_moves(prices):
    @dataclass(frozen=True)
    class Shuffle(Operator):
        op = "shuffle"

        def outputs(self, inputs):
            return inputs

    found = prices.block(Shuffle(), ((1, 64, 32, 32),))
    assert found.doubt == GUESS and found.median_ms == pytest.approx(prices.models[True](0, 0, 2 * 2 * 64 * 32 * 32))


def test_a_table_of_few_layers_prices_only_those(tmp_path):
    table, description = LatencyTable(tmp_path / "a.db"), {"engine": "test", "precision": "fp16", "imported": {}}
    row, conv = table.add_environment(description, {}), Conv(8, 8, 3)
    table.put(row, conv.key(((1, 8, 4, 4),)), Timing(0.5, 0.5, 0.0, 1))
    prices = OperatorPrices(table, row, description)
    assert prices.layer(Conv(8, 8, 3, 1, 1, "relu"), ((1, 8, 4, 4),)).median_ms == 0.5
    with pytest.raises(InputError, match="fewer than 24 dense convolutions"):
        prices.layer(conv, ((1, 8, 5, 5),))
    table.close()


def test_intervals_hold_what_they_say(prices):
    found = prices.layer(Conv(48, 48, 3), ((1, 48, 24, 40),))
    assert QUANTILE * found.spread >= abs(found.median_ms / law(48, 24, 40, 48, 3, 1, 0) - 1)


@pytest.mark.parametrize("change", [('"kernel":3', '"kernel":"three"'), ('"groups":1,', ""), ('"stride":1', '"stride":0')])
def test_entries_that_are_no_convolutions_are_named(tmp_path, change):
    table, description = LatencyTable(tmp_path / "a.db"), {"engine": "test", "precision": "fp16", "imported": {}}
    row, key = table.add_environment(description, {}), Conv(8, 8, 3).key(((1, 8, 4, 4),))
    assert change[0] in key
    table.put(row, key.replace(*change), Timing(0.5, 0.5, 0.0, 1))
    with pytest.raises(InputError, match="is damaged: an entry of a convolution is none"):
        OperatorPrices(table, row, description).layer(Conv(8, 8, 3), ((1, 8, 5, 5),))
    table.close()
