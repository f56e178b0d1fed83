"""`fastnas table`: look into latency tables, check them, join them, carry them to another place."""

import click

from fastnas.cli.main import common_options
from fastnas.errors import InputError

FORMATS = ("fastnas", "tinynas")


@click.group()
def command():
    """Look into latency tables, check, merge, export and import them."""


@command.command()
@click.argument("file", type=click.Path(), required=False)
@common_options
def show(file, as_json):
    """What FILE (default: the user's table) holds: environments, blocks, networks, calibration."""
    from fastnas.latency.calibration import TOO_FAR
    from fastnas.latency.exchange import contents
    from fastnas.latency.table import default_path

    path = file or default_path()
    rows = [_summary(measured) for measured in _reading(path, contents)]
    if not as_json:
        for row in rows:
            description, calibration = row["environment"], row["calibration"]
            click.echo("  ".join(f"{key}: {value}" for key, value in description.items() if not isinstance(value, dict)))
            if imported := description.get("imported"):
                click.echo(f"    {row['entries']} operators, imported from {imported['file']} ({imported['format']})")
                continue
            click.echo(f"    {row['entries']} blocks, {row['networks']} networks measured whole")
            if calibration:
                used = "" if calibration["error"] <= TOO_FAR else " (too far off to be used)"
                click.echo(
                    f"    calibration: {calibration['slope']:.3f} x sum + {calibration['intercept']:.3f} ms from"
                    f" {calibration['networks']} networks, mean error {100 * calibration['error']:.1f} %{used}"
                )
        if not rows:
            click.echo(f"{path} is empty (fill it with: fastnas bench-latency)")
    return {"file": str(path), "environments": rows}


@command.command()
@click.argument("file", type=click.Path())
@common_options
def verify(file, as_json):
    """Read every entry of FILE, a table or an export, and say whether all of it is sound."""
    found = _load(file)
    entries, networks = sum(len(m.blocks) for m in found), sum(len(m.networks) for m in found)
    if not as_json:
        click.echo(f"{file} is sound: {len(found)} environments, {entries} blocks, {networks} networks")
    return {"file": file, "environments": len(found), "entries": entries, "networks": networks}


@command.command()
@click.argument("file", type=click.Path())
@click.option("--table", metavar="FILE", type=click.Path(), help="Table to export (default: the user's).")
@common_options
def export(file, table, as_json):
    """Write a table to FILE as JSON lines with a checksum, for another machine or for version control."""
    from fastnas.latency.exchange import export as write
    from fastnas.latency.table import default_path

    path = table or default_path()
    entries = _reading(path, lambda opened: write(opened, file))
    if not as_json:
        click.echo(f"{entries} blocks of {path} written to {file}")
    return {"file": file, "table": str(path), "entries": entries}


@command.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("--into", metavar="FILE", type=click.Path(), required=True, help="Table to merge into; made where it is missing.")
@click.option("--add-environments", is_flag=True, help="Take environments that the table lacks too, beside its own.")
@common_options
def merge(files, into, add_environments, as_json):
    """Take the entries of FILEs, tables or exports, over into one table. Refuses what was measured in another environment."""
    return _merge(files, into, add_environments, as_json)


@command.command(name="import")
@click.argument("file", type=click.Path())
@click.option("--table", metavar="FILE", type=click.Path(), help="Table to import into (default: the user's).")
@click.option("--format", "form", type=click.Choice(FORMATS), default="fastnas", show_default=True, help="What FILE is.")
@click.option("--engine", metavar="NAME:PRECISION", help="Of a foreign format: what FILE was measured with.")
@click.option("--device", metavar="NAME", help="Of a foreign format: what FILE was measured on, e.g. v100.")
@common_options
def import_(file, table, form, engine, device, as_json):
    """Take FILE over into a table; environments that the table lacks stand beside its own.

    FILE is an export of fastnas, or with --format tinynas a published table of single convolutions: it becomes an environment of
    the engine and the device that you name, and blueprints are priced there as the sums of their layers.
    """
    from fastnas.latency.table import default_path

    path = table or default_path()
    if form == "fastnas":
        if engine or device:
            raise InputError("--engine and --device are for a foreign --format: an export says where it was measured")
        return _merge([file], path, True, as_json)
    if not engine or not device:
        raise InputError(f"--format {form} needs --engine NAME:PRECISION and --device NAME: the file does not say them")
    return _import_tinynas(path, file, engine, device, as_json)


def _import_tinynas(path, file, engine: str, device: str, as_json: bool) -> dict:
    from fastnas.latency.table import LatencyTable
    from fastnas.latency.tinynas import import_tinynas, read_tinynas

    measured = read_tinynas(file, engine, device)  # before a table is made
    target = LatencyTable(path)
    try:
        taken = import_tinynas(target, measured)
    finally:
        target.close()
    if not as_json:
        click.echo(f"{taken} of {len(measured.blocks)} operators of {engine} on {device} taken over into {path}")
        click.echo(f"price with them: fastnas describe BLUEPRINT --engine {engine} --device {device} --table {path}")
    return {"table": str(path), "offered": len(measured.blocks), "taken": taken}


def _merge(files, into, add_environments: bool, as_json: bool) -> dict:
    from fastnas.latency.exchange import merge as merge_into
    from fastnas.latency.table import LatencyTable

    sources = [measured for file in files for measured in _load(file)]  # all are read before anything is written
    target = LatencyTable(into)
    try:
        taken = merge_into(target, sources, add_environments)
    finally:
        target.close()
    offered = sum(len(measured.blocks) for measured in sources)
    if not as_json:
        click.echo(f"{taken} of {offered} blocks taken over into {into}")
    return {"table": str(into), "offered": offered, "taken": taken}


def _load(file):
    """Everything in a table or an export."""
    from fastnas.latency.exchange import contents, read_export

    try:
        with open(file, "rb") as handle:
            is_table = handle.read(16) == b"SQLite format 3\0"
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    return _reading(file, contents) if is_table else read_export(file)


def _reading(path, work):
    """`work` on a table that is open for reading."""
    from fastnas.latency.table import LatencyTable

    table = LatencyTable(path, writable=False)
    try:
        table.check()
        return work(table)
    finally:
        table.close()


def _summary(measured) -> dict:
    from fastnas.latency.calibration import calibration_of

    calibration = calibration_of(measured.networks, lambda pair: measured.blocks.get(pair[0].key(pair[1])))
    return {
        "environment": measured.description,
        "entries": len(measured.blocks),
        "networks": len(measured.networks),
        "baselines_ms": measured.baselines,
        "calibration": calibration.to_dict() if calibration else None,
    }
