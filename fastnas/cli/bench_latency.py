"""`fastnas bench-latency`: fills the latency table, calibrates it, and compares its prices with networks it has not seen."""

import sys
import time
from statistics import median

import click

from fastnas.blueprint import Blueprint, expand, load, parse
from fastnas.cli.main import common_options
from fastnas.errors import FastnasError, InputError

QUERIES, BATCH = 2000, 10_000
PER_SPACE = 36  # networks that are compared, where the number is not given


@click.command()
@click.argument("blueprints", metavar="[BLUEPRINT]...", nargs=-1)
@click.option("--space", metavar="NAME|all", help="Networks sampled from this space (default without BLUEPRINT: all).")
@click.option("--config", metavar="FILE", type=click.Path(), help="Configuration of the space (default: its demo config).")
@click.option("--networks", metavar="N", type=click.IntRange(min=1), help=f"How many to compare (default: {PER_SPACE} a space).")
@click.option(
    "--calibrate", metavar="N", type=click.IntRange(min=0, max=100), default=20, show_default=True,
    help="How many others to calibrate on where the table is not calibrated for the space yet.",
)
@click.option("--operators/--no-operators", default=True, help="Measure single layers too: the baseline of other tools.")
@click.option("--engine", metavar="NAME[:PRECISION]", default="onnxruntime", show_default=True, help="What measures.")
@click.option("--device", metavar="NAME", help="A device that the table knows, e.g. v100 (default: this one, or its only one).")
@click.option("--table", metavar="FILE", type=click.Path(), help="Latency table to fill (default: the user's).")
@common_options
def command(blueprints, space, config, networks, calibrate, operators, engine, device, table, as_json):
    """Measure the blocks of BLUEPRINTs (or of networks sampled from a space) that the latency table lacks.

    With a space, times some of the sampled networks whole and calibrates the table with them. Then times all others whole, twice,
    and prints predicted beside measured. Whatever was measured is stored at once: after Ctrl-C the next call goes on where this
    one stopped. A BLUEPRINT is a preset name, a one-line form, or a .json or .yaml file.

    On a device that is not here and that the table knows, nothing is measured: prints the prices alone.
    """
    from fastnas.latency import Oracle

    if config and (space or "all") == "all":
        raise InputError("--config needs --space NAME: the space that it configures")
    chosen = [load(blueprint)[1] for blueprint in blueprints]
    spaces = _spaces(space or "all", config)
    sampled = bool(space or not blueprints)
    with Oracle.open(table, engine, device=device) as oracle:
        if not oracle.runs_here:
            result = _absent(oracle, spaces, chosen + (_samples(spaces, networks or PER_SPACE) if sampled else []))
            if not as_json:
                _print_prices(result, oracle, chosen)
            return result
        note, start = _Progress(), time.monotonic()
        if oracle.note:
            note.end(oracle.note)
        held_out = _held_out(oracle, note, spaces, networks or PER_SPACE * len(spaces), calibrate) if sampled else []
        together = list(dict.fromkeys([*chosen, *held_out]))
        _fill(oracle, note, together)
        together = _priceable(oracle, note, together)
        seconds = time.monotonic() - start
        result = {**_bench(oracle, note, together, operators and sampled), **_query_times(oracle, spaces, together)}
        result["table_seconds"] = seconds
        if not as_json:
            _print(result, oracle, chosen if blueprints else [])
    return result


def _spaces(space: str, config: str | None) -> list:
    """The space of that name, or all of them, of their demo configs unless another is named."""
    from fastnas.search.config import SPACES, check_config, demo_name, load_config

    made = []
    for name in SPACES if space == "all" else [space]:
        checked = check_config(load_config(name, config), config or demo_name(name))
        made.append(checked.make_space(parse(checked.ancestor).classes))
    return made


def _held_out(oracle, note: "_Progress", spaces: list, networks: int, calibrate: int) -> list[Blueprint]:
    """Networks of the spaces that the calibration has not seen, after calibrating where that was not done for them before."""
    seen = oracle.calibrated()
    sampled = [b for b in _samples(spaces, networks + calibrate + len(seen)) if b.text not in seen]
    if missing := max(0, calibrate - sum(_inside(text, spaces) for text in seen)):
        _fill(oracle, note, sampled)
        oracle.calibrate(sampled, missing, lambda done, total: note(f"calibration network {done + 1}/{total}", done, total))
        seen = oracle.calibrated()
    if found := oracle.calibration:
        note.end(f"calibrated on {found.networks} networks: leave-one-out error {100 * found.error:.1f} %")
    left = [b for b in sampled if b.text not in seen]
    return [left[len(left) * index // networks] for index in range(networks)] if len(left) > networks else left


def _inside(text: str, spaces: list) -> bool:
    """Whether a network is one of these spaces'."""
    for space in spaces:
        try:
            space.validate(parse(text))
        except InputError:
            continue
        return True
    return False


def _samples(spaces: list, count: int) -> list[Blueprint]:
    """The ancestor of each space and distinct blueprints sampled from it, the same ones every time; as many of each space."""
    import numpy as np

    share, found = -(-count // len(spaces)), {}
    for space in spaces:
        random, own = np.random.default_rng(0), {space.ancestor: None}
        for _ in range(20 * share):
            if len(own) == share:
                break
            own[space.sample(random)] = None
        found |= own
    return list(found)


def _fill(oracle, note: "_Progress", blueprints: list[Blueprint]) -> None:
    measured = oracle.fill(blueprints, lambda done, total, pair: note(f"block {done + 1}/{total}: {pair[0].op}", done, total))
    note.end(f"{measured} blocks measured, {oracle.entries()} in {oracle.table.path}")


def _priceable(oracle, note: "_Progress", blueprints: list[Blueprint]) -> list[Blueprint]:
    """Without those that the engine cannot run."""
    found = oracle.priceable(blueprints)
    if len(found) < len(blueprints):
        first = next(b for b in blueprints if b not in found)
        try:
            oracle(first)
        except FastnasError as error:
            note.end(f"{len(blueprints) - len(found)} networks are left out: {error}")
            if not found:
                raise
    return found


def _bench(oracle, note: "_Progress", blueprints: list[Blueprint], operators: bool) -> dict:
    from fastnas.latency import proof

    sums = None
    if operators:
        sums = proof.operator_sums(oracle, blueprints, lambda done, total: note(f"single layer {done + 1}/{total}", done, total))
        note.end("single layers measured")
    counted = lambda done, total: note(f"whole network {done + 1}/{total}", done, total)  # noqa: E731
    whole = proof.measure(oracle, blueprints, counted, time.perf_counter)
    note.end(f"{len(blueprints)} networks timed whole")
    prices = [oracle(blueprint) for blueprint in blueprints]
    return {
        "environment": oracle.environment,
        "entries": oracle.entries(),
        "networks": [
            {
                "text": b.text, "measured_ms": truth, "predicted_ms": p.predicted, "low_ms": p.low, "high_ms": p.high,
                "passes_ms": [first, second], "sum_ms": sum(row.ms for row in oracle.blocks(b)), "macs": expand(b).macs,
            }
            for b, truth, first, second, p in zip(blueprints, whole.truth, whole.first, whole.second, prices, strict=True)
        ],
        "blocks": [{"network": b.text, **row.to_dict()} for b in blueprints for row in oracle.blocks(b)],
        "accuracy": proof.figures(oracle, blueprints, whole, sums),
        "whole_network_ms": 1e3 * whole.seconds,
    }  # fmt: skip


def _absent(oracle, spaces: list, blueprints: list[Blueprint]) -> dict:
    """Prices on a device that is not here: nothing is measured and nothing compared."""
    from fastnas.latency import proof

    blueprints = list(dict.fromkeys(blueprints))
    prices = [oracle(blueprint) for blueprint in blueprints]
    return {
        "environment": oracle.environment,
        "entries": oracle.entries(),
        "networks": [
            {
                "text": b.text, "measured_ms": None, "predicted_ms": p.predicted, "low_ms": p.low, "high_ms": p.high,
                "interpolated": p.interpolated, "modelled": p.modelled, "macs": expand(b).macs,
            }
            for b, p in zip(blueprints, prices, strict=True)
        ],
        "blocks": [{"network": b.text, **row.to_dict()} for b in blueprints for row in oracle.blocks(b)],
        "accuracy": dict.fromkeys(proof.FIGURES) | {"n": 0, "calibration_networks": 0},
        **_query_times(oracle, spaces, blueprints),
        "whole_network_ms": None,
    }  # fmt: skip


def _query_times(oracle, spaces: list, blueprints: list[Blueprint]) -> dict:
    """Microseconds of one query: of an encoded blueprint, alone and in a batch (the slowest space's), and of one not encoded."""
    import numpy as np

    from fastnas.latency.batch import BatchPricer

    clock, singles, batches, new = time.perf_counter, [], [], []
    for space in spaces:
        pricer, random, single, batch = BatchPricer(oracle, space), np.random.default_rng(0), [], []
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
        singles.append(median(single))
        batches.append(median(batch))
    for blueprint in blueprints * 5:
        oracle.forget(blueprint)
        start = clock()
        oracle(blueprint)
        new.append(clock() - start)
    return {"query_us": 1e6 * max(singles), "batch_query_us": 1e6 * max(batches), "new_query_us": 1e6 * median(new)}


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


def _print_prices(result: dict, oracle, blueprints: list[Blueprint]) -> None:
    _print_blocks(result, oracle, blueprints)
    click.echo(f"\n{'predicted':>9}  {'interval':19} {'interpolated':>12} {'modelled':>9}  network")
    for row in result["networks"]:
        interval = f"{row['low_ms']:.2f} to {row['high_ms']:.2f}"
        shares = f"{100 * row['interpolated']:10.0f} % {100 * row['modelled']:7.0f} %"
        click.echo(f"{row['predicted_ms']:9.2f}  {interval:19} {shares}  {row['text']}")
    click.echo(f"\n{result['environment']['device']} is not here: nothing was measured")


def _print_blocks(result: dict, oracle, blueprints: list[Blueprint]) -> None:
    environment = result["environment"]
    engine = f"{environment['engine']} {environment['version']} {environment['precision']}, {environment['threads']} thread"
    click.echo(f"{engine} on {environment['device']}; {result['entries']} blocks in {oracle.table.path}")
    for blueprint in blueprints:
        click.echo(f"\n{blueprint.text}\n{'block':28} {'uses':>4} {'ms':>9}")
        for row in oracle.blocks(blueprint):
            click.echo(f"{row.name:28} {row.count:4} {row.ms:9.3f}")


def _print(result: dict, oracle, blueprints: list[Blueprint]) -> None:
    accuracy = result["accuracy"]
    _print_blocks(result, oracle, blueprints)
    click.echo(f"\n{'measured':>9} {'predicted':>9} {'error':>7}  {'interval':19}  network")
    for row in result["networks"]:
        error = 100 * (row["predicted_ms"] / row["measured_ms"] - 1)
        interval = f"{row['low_ms']:.2f} to {row['high_ms']:.2f}"
        click.echo(f"{row['measured_ms']:9.2f} {row['predicted_ms']:9.2f} {error:+6.1f}%  {interval:19}  {row['text']}")
    click.echo(
        f"\n{accuracy['n']} networks: mean error {accuracy['mape']:.1f} %, within 5 % {accuracy['within_5']:.0f} %,"
        f" within 10 % {accuracy['within_10']:.0f} %, inside the interval {accuracy['interval_coverage']:.0f} %"
    )
    middle, most = accuracy["repeat_median"], accuracy["repeat_p90"]
    click.echo(f"timing a network again differs by {middle:.1f} % (median), {most:.1f} % (90th percentile)")
    if accuracy["calibration_networks"]:
        click.echo(f"calibrated on {accuracy['calibration_networks']} other networks")
    else:
        click.echo("not calibrated: prices are plain sums of blocks (calibrate with: fastnas bench-latency --space NAME)")
    if accuracy["split_coverage"] is not None:
        click.echo(f"the 90 % interval holds {accuracy['split_coverage']:.0f} % of networks, the mean of 200 random calibrations")
    if accuracy["n"] >= 3:
        click.echo(f"\n{'from':34} {'mean error':>10} {'Kendall tau':>12}")
        rows = {
            "the calibrated table": "",
            "sums of blocks as they are": "sum_",
            "isolated operators": "operators_",
            "isolated operators, scaled": "operators_scaled_",
            "MACs, scaled": "macs_",
        }
        for name, key in rows.items():
            if (error := accuracy[f"{key}mape"]) is not None:
                tau = accuracy[f"{key.replace('scaled_', '')}kendall_tau"]
                click.echo(f"{name:34} {error:8.1f} % {_number(tau):>12}")
    click.echo(f"\nthe table took {result['table_seconds']:.0f} s")
    click.echo(
        f"a query takes {result['query_us']:.1f} us, {result['batch_query_us']:.3f} us in a batch of {BATCH:,}"
        f" ({result['new_query_us']:.0f} us for a blueprint that is not encoded),"
        f" timing a whole network {result['whole_network_ms']:.0f} ms"
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
