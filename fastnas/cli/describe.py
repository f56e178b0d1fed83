"""`fastnas describe`: parameters, MACs, blocks and, where a table is named, milliseconds of a blueprint."""

import click

from fastnas.blueprint import expand, load
from fastnas.cli.main import common_options


@click.command()
@click.argument("blueprint")
@click.option("--engine", metavar="NAME[:PRECISION]", help="Price the blueprint with this engine's latency table.")
@click.option("--device", metavar="NAME", help="A device that the table knows, e.g. v100 (default: this one, or its only one).")
@click.option("--table", metavar="FILE", type=click.Path(), help="Latency table to price with (default: the user's).")
@common_options
def command(blueprint, engine, device, table, as_json):
    """Describe BLUEPRINT: a preset name, a one-line form, or a .json or .yaml file."""
    name, described = load(blueprint)
    network = expand(described)
    result = {
        "name": name,
        "text": described.text,
        "blueprint": described.to_dict(),
        "input": list(described.input),
        "params": network.params,
        "macs": network.macs,
        "blocks": [block.to_dict() for block in network.blocks],
    }
    absent = ""
    if engine or table or device:
        from fastnas.latency import Oracle  # loads the engine: only where a price is wanted

        with Oracle.open(table, engine=engine or "onnxruntime", device=device) as oracle:
            result["latency_ms"] = oracle(described).to_dict()
            absent = "" if oracle.runs_here else f" on {oracle.environment['device']}"
    if not as_json:
        _print(result, absent)
    return result


def _print(result: dict, absent: str) -> None:
    """absent: the device, where it is not this machine's."""
    click.echo(f"{result['name']}\n{result['text']}")
    click.echo(f"{result['params']:,} parameters, {result['macs'] / 1e9:.3f} GMACs at {result['input'][0]}x{result['input'][1]}\n")
    click.echo(f"{'block':28} {'uses':>4} {'parameters':>12} {'MMACs':>10}  output of the first use")
    for block in result["blocks"]:
        shape = " ".join("x".join(map(str, shape)) for shape in block["outputs"][0])
        click.echo(f"{block['name']:28} {block['uses']:4} {block['params']:12,} {block['macs'] / 1e6:10.2f}  {shape}")
    if price := result.get("latency_ms"):
        shares = [f"{100 * price[kind]:.0f} % {kind}" for kind in ("measured", "interpolated", "modelled") if price[kind] > 0.005]
        interval = f"{price['low']:.2f} to {price['high']:.2f}"
        click.echo(f"\n{price['predicted']:.2f} ms ({interval}) with {price['engine']}{absent}; {', '.join(shares)}")
