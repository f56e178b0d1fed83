"""Native batch prices against the oracle's own, over random blueprints of a space on a table with holes."""

import threading

import numpy as np
import pytest

from fastnas import _core
from fastnas.blueprint import expand, parse
from fastnas.errors import InputError
from fastnas.latency import Oracle, Timing
from fastnas.latency.batch import BatchPricer
from fastnas.latency.engines import open_engine
from fastnas.latency.table import LatencyTable
from fastnas.spaces.genes import END
from fastnas.spaces.spnas import SerialRules, SerialSpace

ANCESTORS = [
    "64x64/basic:1-2,base=8/fpn:8/rpn:20,topk=50/rcnn:16,detections=10/classes:3",
    "96x64/bottleneck:1-2-1,base=8,stem=3x3,norm=gn/fpn:8/rpn:20,topk=50/rcnn:16,detections=10/classes:3",
]
RULES = SerialRules(max_blocks=8, max_stages=4)


def filled(path, networks, seed=0) -> Oracle:
    """An oracle whose table holds the blocks of `networks`, with made-up times."""
    table, rng = LatencyTable(path), np.random.default_rng(seed)
    row = table.add_environment(open_engine("onnxruntime").environment(), {"dense": 0.5, "gather": 0.25})
    with table.transaction():
        for spec, shapes in dict.fromkeys(pair for network in networks for pair in expand(network).prices()):
            ms = float(rng.uniform(0.01, 2))
            table.put(row, spec.key(shapes), Timing(ms, ms, 0.01, 9))
    table.close()
    return Oracle.open(path, measure=False)


def drawn(space, count, seed):
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count)]


@pytest.mark.parametrize("text", ANCESTORS)
def test_the_numbers_of_the_oracle(text, tmp_path):
    space = SerialSpace(parse(text), RULES)
    known = drawn(space, 12, seed=1)
    with filled(tmp_path / "latency.db", known) as oracle:
        pricer = BatchPricer(oracle, space)
        assert pricer.unknown > 0, "the table has holes"
        networks = known + drawn(space, 300, seed=2)
        genes = np.stack([space.encode(network) for network in networks])
        prices, counts = pricer(genes), pricer.counts(genes)
        priced = 0
        for network, row, price, count in zip(networks, genes, prices, counts, strict=True):
            assert space.decode(row) == network
            expanded = expand(network)
            assert count.tolist() == [expanded.params, expanded.macs]
            assert pricer.one(row) == price or np.isnan(price)
            try:
                expected = oracle(network).predicted
            except InputError:  # a block that the table lacks
                assert np.isnan(price) and np.isnan(pricer.one(row))
            else:
                assert price == pytest.approx(expected, rel=1e-9)
                priced += 1
        assert 12 < priced < len(networks), "both kinds came up"


def test_follows_the_calibration(tmp_path):
    space = SerialSpace(parse(ANCESTORS[0]), RULES)
    known = list(dict.fromkeys(drawn(space, 40, seed=1)))
    with filled(tmp_path / "latency.db", known) as oracle:
        plain = {network: oracle(network).predicted for network in known}
    with Oracle.open(tmp_path / "latency.db", measure=False) as oracle:
        writer = LatencyTable(tmp_path / "latency.db")
        row = writer.environment(oracle.environment)
        for network in known[:10]:
            writer.put_network(row, network.text, Timing(1.3 * plain[network], 1.0, 0.0, 9), {"dense": 1.0})
        writer.close()
        prices = BatchPricer(oracle, space)(np.stack([space.encode(network) for network in known]))
        assert prices == pytest.approx([oracle(network).predicted for network in known], rel=1e-9)
        assert np.mean(prices / list(plain.values())) == pytest.approx(1.3, rel=0.02)


def test_limits(tmp_path):
    space = SerialSpace(parse(ANCESTORS[0]), RULES)
    networks = drawn(space, 100, seed=3)
    with filled(tmp_path / "latency.db", networks[:60]) as oracle:
        pricer = BatchPricer(oracle, space)
        genes = np.stack([space.encode(network) for network in networks])
        prices, (params, macs) = pricer(genes), pricer.counts(genes).T
        limits = {"latency_ms": float(np.nanmedian(prices)), "params": float(np.median(params)), "macs": float(np.median(macs))}
        assert (pricer.within(genes, **limits) == (
            (prices <= limits["latency_ms"]) & (params <= limits["params"]) & (macs <= limits["macs"])
        )).all()  # fmt: skip
        assert (pricer.within(genes) == ~np.isnan(prices)).all(), "no limit: all that have a price"
        assert pricer.within(genes, latency_ms=limits["latency_ms"]).any()


def test_what_is_no_blueprint_has_no_price(tmp_path):
    space = SerialSpace(parse(ANCESTORS[0]), RULES)
    known = drawn(space, 60, seed=1)
    with filled(tmp_path / "latency.db", known) as oracle:
        pricer = BatchPricer(oracle, space)
    one, two, boundary = range(3)
    for word in ([], [boundary], [one, boundary], [one, boundary, boundary, one], [7], [one, 200], [boundary, one]):
        row = np.full(space.width, END, np.uint8)
        row[: len(word)] = word
        assert np.isnan(pricer.one(row)) and np.isnan(pricer(row[None])).all() and np.isnan(pricer.counts(row[None])).all(), word
    assert len(pricer(np.empty((0, space.width), np.uint8))) == 0


def test_wrong_arrays_are_refused():
    next_, cost, marks = np.zeros((1, 2), np.int32), np.zeros((1, 2, 1)), np.zeros((1, 2), np.uint64)
    automaton = _core.Automaton(next_, cost, marks, np.array([True]), END)
    for call, message in [
        (lambda: automaton.walk(np.zeros(3, np.uint8)), r"expected \[words, width\]"),
        (lambda: automaton.first(np.zeros((1, 3), np.uint8)), r"expected \[width\]"),
        (lambda: _core.Automaton(next_ + 5, cost, marks, np.array([True]), END), "no state 5"),
        (lambda: _core.Automaton(next_, cost[:, :1], marks, np.array([True]), END), "expected"),
        (lambda: _core.Automaton(next_, cost, marks, np.array([True, False]), END), "one flag for each of 1 states"),
        (lambda: _core.within(np.zeros((2, 3)), np.zeros(2)), "expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError):
        automaton.walk(np.zeros((1, 3)))  # genes are never converted silently: 0.9 would become 0


def test_the_interpreter_runs_on_while_a_batch_is_priced():
    states = np.zeros((1, 1), np.int32)
    automaton = _core.Automaton(states, np.ones((1, 1, 1)), np.zeros((1, 1), np.uint64), np.array([True]), END)
    genes, ticks, done = np.zeros((300_000, 200), np.uint8), [], threading.Event()

    def price():
        automaton.walk(genes)
        done.set()

    thread = threading.Thread(target=price)
    thread.start()
    while not done.wait(0.001):
        ticks.append(1)
    thread.join()
    assert len(ticks) > 5, "the lock of the interpreter was held"
