"""Timing against references: proved with an engine whose clock the test moves."""

from types import SimpleNamespace

import pytest

from fastnas.blueprint import blocks as b
from fastnas.blueprint import expand, parse
from fastnas.latency import timing
from fastnas.latency.timing import BETWEEN, DENSE, GATHER, Stopwatch, Timing, lowered, mix_of, reference_of

ONLY_DENSE = {DENSE: 1.0}


class FakeEngine:
    """A run takes what the test says, times the load of the machine at that moment on its kind of work."""

    def __init__(self):
        self.now, self.load = 0.0, lambda now, kind: 1.0

    def clock(self) -> float:
        return self.now

    def takes(self, seconds: float, kind: str = DENSE):
        def run():
            self.now += seconds * self.load(self.now, kind)

        return run

    def prepare(self, workload):
        kind = GATHER if any(node.op_type == "RoiAlign" for node in workload.onnx().graph.node) else DENSE
        return type("Runner", (), {"run": staticmethod(self.takes(0.001, kind))})


@pytest.fixture
def engine(monkeypatch):
    """Budgets are spent on its clock too: how many slices there are does not depend on the machine."""
    engine = FakeEngine()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=engine.clock))
    return engine


@pytest.fixture
def watch(engine):
    return Stopwatch(engine)


def test_quiet_machine(engine, watch):
    assert watch.baselines == pytest.approx({DENSE: 1.0, GATHER: 1.0})
    found = watch.measure(engine.takes(0.005), ONLY_DENSE)
    assert found.median_ms == pytest.approx(5.0) and found.min_ms == pytest.approx(5.0)
    assert found.spread == pytest.approx(0, abs=1e-6) and found.count >= 4


def test_a_slow_machine_gives_the_same_answer(engine, watch):
    engine.load = lambda now, kind: 1.7
    assert watch.measure(engine.takes(0.005), ONLY_DENSE).median_ms == pytest.approx(5.0)


def test_each_kind_of_work_has_its_own_drift(engine, watch):
    engine.load = lambda now, kind: 2.0 if kind == GATHER else 1.2
    assert watch.measure(engine.takes(0.005, GATHER), {GATHER: 1.0}).median_ms == pytest.approx(5.0)
    dense, gather = engine.takes(0.006), engine.takes(0.002, GATHER)

    def network():
        dense()
        gather()

    assert watch.measure_whole([(network, {DENSE: 6.0, GATHER: 2.0})])[0].median_ms == pytest.approx(8.0)


def test_slices_in_which_the_load_changes_are_dropped(engine, watch):
    engine.load = lambda now, kind: 3.0 if now % 0.1 < 0.03 else 1.0
    assert watch.measure(engine.takes(0.005), ONLY_DENSE).median_ms == pytest.approx(5.0, rel=0.01)


def test_stored_baselines_are_used(engine):
    watch = Stopwatch(engine, {DENSE: 2.0, GATHER: 1.0})
    assert watch.measure(engine.takes(0.005), ONLY_DENSE).median_ms == pytest.approx(10.0)


def test_short_and_long_candidates(engine, watch):
    assert watch.measure(engine.takes(2e-6), ONLY_DENSE).median_ms == pytest.approx(0.002)
    start = engine.now
    found = watch.measure(engine.takes(4.0), ONLY_DENSE)
    assert found.median_ms == pytest.approx(4000)
    assert engine.now - start < 4.0 * (3 + 2 * found.count) + 1, "warm-up, then one run a slice"


def test_blocks_do_not_run_in_their_own_caches(engine, watch):
    """A run takes twice as long when another model ran before it."""
    runs = []

    def block():
        engine.now += 0.002 if runs and runs[-1] == "between" else 0.001
        runs.append("block")

    original = watch._between
    watch._between = lambda: (runs.append("between"), original())
    assert watch.measure(block, ONLY_DENSE).median_ms == pytest.approx(2.0)
    runs.clear()
    assert watch.measure_whole([(block, ONLY_DENSE)])[0].median_ms == pytest.approx(1.0)


def test_mix_of():
    assert mix_of(b.RoiPool((4,))) == {GATHER: 1.0} and mix_of(b.RpnHead(8, 3)) == ONLY_DENSE


def test_the_key_of_a_block_tells_its_reference():
    network = expand(parse(BETWEEN))
    references = {spec.key(shapes): mix_of(spec) for spec, shapes in network.prices()}
    assert {reference_of(key) for key in references} == {DENSE, GATHER}
    assert all({reference_of(key): 1.0} == mix for key, mix in references.items())


def test_only_clearly_lower_baselines_count():
    stored = {DENSE: 1.4, GATHER: 1.0}
    assert lowered(stored, {DENSE: 1.0, GATHER: 1.3}) == {DENSE: 1.0, GATHER: 1.0}
    assert lowered(stored, {DENSE: 1.38, GATHER: 0.97}) == stored, "noise"


def test_whole_networks_take_turns(engine, watch):
    """The machine slows down for good in a way that the references do not feel: all networks get the same share of it."""
    order, start = [], engine.now

    def network(name, seconds):
        def run():
            order.append(name)
            engine.now += seconds * (1.0 if engine.now < start + 0.6 else 2.0)

        return run

    timings = watch.measure_whole([(network(name, ms / 1e3), ONLY_DENSE) for name, ms in (("a", 4), ("b", 5), ("c", 6))])
    a, b, c = (timing.median_ms for timing in timings)
    assert b / a == pytest.approx(5 / 4, rel=0.05) and c / a == pytest.approx(6 / 4, rel=0.05)
    assert len({timing.count for timing in timings}) == 1 and all(timing.spread >= 0 for timing in timings)
    rounds = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert rounds[3:6] == ["a", "b", "c"] and rounds[: len(rounds) // 3 * 3] == ["a", "b", "c"] * (len(rounds) // 3)


def test_to_dict():
    assert Timing(1.0, 0.9, 0.1, 3).to_dict() == {"median_ms": 1.0, "min_ms": 0.9, "spread": 0.1, "count": 3}
