"""`fastnas bench-latency`: fills the latency table, calibrates it, and compares its prices with networks it has not seen."""

import sys
import time
from statistics import fmean, median

import click

from fastnas.blueprint import Blueprint, expand, load
from fastnas.cli.main import common_options
from fastnas.errors import InputError

QUERIES, BATCH = 2000, 10_000
TOGETHER = 8  # networks in memory at the same time, timed in interleaved rounds


@click.command()
@click.argument("blueprints", metavar="[BLUEPRINT]...", nargs=-1)
@click.option("--space", metavar="NAME|all", help="Networks sampled from this space (default without BLUEPRINT: all).")
@click.option("--config", metavar="FILE", type=click.Path(), help="Configuration of the space (default: its demo config).")
@click.option("--networks", metavar="N", type=click.IntRange(min=1), default=8, show_default=True, help="How many to compare.")
@click.option(
    "--calibrate", metavar="N", type=click.IntRange(min=0, max=100), default=12, show_default=True,
    help="How many others to calibrate on where the table is not calibrated yet.",
)
@click.option("--engine", metavar="NAME[:PRECISION]", default="onnxruntime", show_default=True, help="What measures.")
@click.option("--table", metavar="FILE", type=click.Path(), help="Latency table to fill (default: the user's).")
@common_options
def command(blueprints, space, config, networks, calibrate, engine, table, as_json):
    """Measure the blocks of BLUEPRINTs (or of networks sampled from a space) that the latency table lacks.

    With a space, times some of the sampled networks whole and calibrates the table with them. Then times all others whole, twice,
    and prints predicted beside measured. Whatever was measured is stored at once: after Ctrl-C the next call goes on where this
    one stopped. A BLUEPRINT is a preset name, a one-line form, or a .json or .yaml file.
    """
    from fastnas.latency import Oracle

    if config and (space or "all") == "all":
        raise InputError("--config needs --space NAME: the space that it configures")
    chosen = [load(blueprint)[1] for blueprint in blueprints]
    with Oracle.open(table, engine) as oracle:
        note = _Progress()
        if oracle.note:
            note.end(oracle.note)
        if space or not blueprints:
            chosen += _held_out(oracle, note, space or "all", config, networks, calibrate)
        result = _bench(oracle, note, list(dict.fromkeys(chosen)))
        if not as_json:
            _print(result, oracle, chosen if blueprints else [])
    return result


def _held_out(oracle, note: "_Progress", space: str, config: str | None, networks: int, calibrate: int) -> list[Blueprint]:
    """Networks of the space that the calibration has not seen, after calibrating where that was not done before."""
    seen = oracle.calibrated()
    sampled = [b for b in _samples(space, config, networks + calibrate + len(seen)) if b.text not in seen]
    if calibrate and not seen:
        _fill(oracle, note, sampled)
        oracle.calibrate(sampled, calibrate, lambda done, total: note(f"calibration network {done + 1}/{total}", done, total))
        seen = oracle.calibrated()
    if found := oracle.calibration:
        note.end(f"calibrated on {found.networks} networks: leave-one-out error {100 * found.error:.1f} %")
    left = [b for b in sampled if b.text not in seen]
    step = max(1, len(left) // networks)
    return left[::step][:networks]


def _bench(oracle, note: "_Progress", blueprints: list[Blueprint]) -> dict:
    _fill(oracle, note, blueprints)
    first, second, seconds = [], [], 0.0
    for values in (first, second):  # two passes, so that the repeat error holds the machine's slow changes
        for index in range(0, len(blueprints), TOGETHER):
            done = len(first) + len(second)
            note(f"whole network {done + 1}/{2 * len(blueprints)}", done, 2 * len(blueprints))
            start = time.perf_counter()
            values += [timing.median_ms for timing in oracle.measure_whole_all(blueprints[index : index + TOGETHER])]
            seconds += time.perf_counter() - start
    note.end(f"{len(blueprints)} networks timed whole")
    prices = [oracle(blueprint) for blueprint in blueprints]
    truth = [fmean(pair) for pair in zip(first, second, strict=True)]
    return {
        "environment": oracle.environment,
        "entries": oracle.entries(),
        "networks": [
            {"text": b.text, "measured_ms": t, "predicted_ms": p.predicted, "low_ms": p.low, "high_ms": p.high}
            for b, t, p in zip(blueprints, truth, prices, strict=True)
        ],
        "blocks": [{"network": b.text, **row.to_dict()} for b in blueprints for row in oracle.blocks(b)],
        "accuracy": _accuracy(oracle, blueprints, prices, truth, first, second),
        **_query_times(oracle, blueprints),
        "whole_network_ms": 1e3 * seconds / (2 * len(blueprints)),
    }


def _fill(oracle, note: "_Progress", blueprints: list[Blueprint]) -> None:
    measured = oracle.fill(blueprints, lambda done, total, pair: note(f"block {done + 1}/{total}: {pair[0].op}", done, total))
    note.end(f"{measured} blocks measured, {oracle.entries()} in {oracle.table.path}")


def _accuracy(oracle, blueprints, prices, truth, first, second) -> dict:
    """How good the prices of these networks are; what they are compared with: the repeat error, plain sums, and MACs alone."""
    from fastnas.latency import accuracy

    predicted, macs = [price.predicted for price in prices], [expand(b).macs for b in blueprints]
    sums = [sum(block.ms for block in oracle.blocks(b)) for b in blueprints]
    calibration = oracle.calibration
    return {
        "n": len(truth),
        "mape": accuracy.mape(predicted, truth),
        "within_5": accuracy.within(5, predicted, truth),
        "within_10": accuracy.within(10, predicted, truth),
        "repeat_mape": accuracy.mape(first, second),
        "calibration_networks": calibration.networks if calibration else 0,
        "sum_mape": accuracy.mape(sums, truth),
        "interval_coverage": accuracy.coverage([p.low for p in prices], [p.high for p in prices], truth),
        "kendall_tau": accuracy.kendall_tau(predicted, truth),  # None for one network, as those below
        "macs_mape": accuracy.proportional_mape(macs, truth),
        "macs_kendall_tau": accuracy.kendall_tau(macs, truth),
    }


def _query_times(oracle, blueprints: list[Blueprint]) -> dict:
    """Microseconds of one query: of an encoded blueprint, alone and in a batch, and of a new blueprint of known blocks."""
    import numpy as np

    from fastnas.latency.batch import BatchPricer
    from fastnas.spaces.spnas import SerialRules, SerialSpace

    clock, new, single, batch = time.perf_counter, [], [], []
    space = SerialSpace(blueprints[0], SerialRules(max_blocks=max(16, 2 * len(blueprints[0].backbone.code))))
    pricer, random = BatchPricer(oracle, space), np.random.default_rng(0)
    genes = np.stack([space.encode(space.sample(random)) for _ in range(200)])
    genes = genes[random.integers(len(genes), size=BATCH)]
    for row in genes[:QUERIES]:
        start = clock()
        pricer.one(row)
        single.append(clock() - start)
    for _ in range(20):
        start = clock()
        pricer(genes)
        batch.append((clock() - start) / len(genes))
    for blueprint in blueprints * 5:
        oracle.forget(blueprint)
        start = clock()
        oracle(blueprint)
        new.append(clock() - start)
    return {"query_us": 1e6 * median(single), "batch_query_us": 1e6 * median(batch), "new_query_us": 1e6 * median(new)}


def _samples(space: str, config: str | None, count: int) -> list[Blueprint]:
    """The ancestor of each space and distinct blueprints sampled from it, the same ones every time."""
    import numpy as np

    from fastnas.blueprint import parse
    from fastnas.search.config import SPACES, check_config, load_config

    found: dict[Blueprint, None] = {}
    for name in SPACES if space == "all" else [space]:
        checked = check_config(load_config(name, config), config or f"{name}-demo.yaml")
        made = checked.make_space(parse(checked.ancestor).classes)
        random, own = np.random.default_rng(0), {made.ancestor: None}
        for _ in range(20 * count):
            if len(own) == count:
                break
            own[made.sample(random)] = None
        found |= own
    return list(found)


class _Progress:
    """One line on stderr: rewritten in place on a terminal, else printed now and then."""

    def __init__(self):
        self._live, self._started, self._said = sys.stderr.isatty(), time.monotonic(), 0.0

    def __call__(self, text: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == 0:
            self._started = now
        left = f", about {(now - self._started) / done * (total - done):.0f} s left" if done else ""
        if self._live:
            print(f"\r\x1b[K{text}{left}", end="", file=sys.stderr, flush=True)
        elif now - self._said > 5:
            self._said = now
            print(f"{text}{left}", file=sys.stderr, flush=True)

    def end(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self._live else text, file=sys.stderr, flush=True)


def _print(result: dict, oracle, blueprints: list[Blueprint]) -> None:
    environment, accuracy = result["environment"], result["accuracy"]
    engine = f"{environment['engine']} {environment['version']} {environment['precision']}, {environment['threads']} thread"
    click.echo(f"{engine} on {environment['device']}; {result['entries']} blocks in {oracle.table.path}")
    for blueprint in blueprints:
        click.echo(f"\n{blueprint.text}\n{'block':28} {'uses':>4} {'ms':>9}")
        for row in oracle.blocks(blueprint):
            click.echo(f"{row.name:28} {row.count:4} {row.ms:9.3f}")
    click.echo(f"\n{'measured':>9} {'predicted':>9} {'error':>7}  {'interval':19}  network")
    for row in result["networks"]:
        error = 100 * (row["predicted_ms"] / row["measured_ms"] - 1)
        interval = f"{row['low_ms']:.2f} to {row['high_ms']:.2f}"
        click.echo(f"{row['measured_ms']:9.2f} {row['predicted_ms']:9.2f} {error:+6.1f}%  {interval:19}  {row['text']}")
    click.echo(
        f"\n{accuracy['n']} networks: mean error {accuracy['mape']:.1f} %, within 5 % {accuracy['within_5']:.0f} %,"
        f" within 10 % {accuracy['within_10']:.0f} %, inside the interval {accuracy['interval_coverage']:.0f} %"
    )
    click.echo(f"timing a network again differs by {accuracy['repeat_mape']:.1f} %")
    click.echo(
        f"calibrated on {accuracy['calibration_networks']} other networks; plain sums of blocks: {accuracy['sum_mape']:.1f} % off"
        if accuracy["calibration_networks"]
        else "not calibrated: prices are plain sums of blocks (calibrate with: fastnas bench-latency --space NAME)"
    )
    if accuracy["n"] >= 3:
        click.echo(
            f"Kendall tau {_number(accuracy['kendall_tau'])}; from MACs alone: mean error {accuracy['macs_mape']:.1f} %,"
            f" tau {_number(accuracy['macs_kendall_tau'])}"
        )
    click.echo(
        f"a query takes {result['query_us']:.1f} us, {result['batch_query_us']:.3f} us in a batch of {BATCH:,}"
        f" ({result['new_query_us']:.0f} us for a blueprint that is not encoded),"
        f" timing a whole network {result['whole_network_ms']:.0f} ms"
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
