"""`fastnas convert`: a checkpoint of another program becomes a weights file."""

import click

from fastnas.cli.main import common_options

SHOWN = 8  # lines of each list, for people


@click.command()
@click.argument("checkpoint", type=click.Path())
@click.option("--out", required=True, metavar="FILE", type=click.Path(), help="Weights file to write (.safetensors).")
@click.option("--blueprint", metavar="BLUEPRINT", help="The detector to fill, where the checkpoint does not tell it.")
@click.option("--classes", metavar="NAME,NAME,...", help="Names of the classes (default: COCO's where a detector has 90).")
@click.option("--norm-eps", metavar="X", type=click.FloatRange(0, 1), help="eps of its batch norms (default: the format's).")
@common_options
def command(checkpoint, out, blueprint, classes, norm_eps, as_json):
    """Write what fits of CHECKPOINT (.pth of torch.save, or .safetensors) as a weights file.

    Known: torchvision's Faster R-CNN and RetinaNet, its classification ResNet, ResNeXt 32x4d and EfficientNet, timm's ResNet and
    EfficientNet, and effdet's EfficientDet. A backbone alone is what --init of train and search starts from. Only tensors are read,
    no code of the file is run, nothing is downloaded. A layer is copied whole or not at all; a checkpoint of which nothing fits, or
    only a part of the backbone, is refused.
    """
    from fastnas.blueprint import load
    from fastnas.errors import InputError
    from fastnas.models.convert import convert_file

    if not str(out).endswith(".safetensors"):
        raise InputError(f"cannot write {out}: let its name end in .safetensors")
    names = [name.strip() for name in classes.split(",")] if classes else None
    filled, known, done = convert_file(checkpoint, out, load(blueprint)[1] if blueprint else None, names, norm_eps)
    if not as_json:
        _print(filled.text, done)
        click.echo(out)
    return {"out": out, "blueprint": filled.text, "classes": known, "complete": done.complete, **done.to_dict()}


def _print(text: str, done) -> None:
    click.echo(f"{done.format} -> {text}")
    for part, (copied, total) in done.parts().items():
        click.echo(f"{part}: {copied} of {total} tensors copied")
    if done.rescaled:
        click.echo(f"{done.rescaled} batch norms have another eps: their variances make up for it")
    _print_list("not copied", [f"{name}: {why}" for name, why in done.misfits().items()])
    _print_list("not copied", [f"{number} tensors of the {part}: not in the checkpoint" for part, number in done.absent().items()])
    _print_list("no place in the blueprint", [f"{name} (in the checkpoint)" for name in done.unused])
    if not done.complete:
        click.echo("not a whole detector: train from it with --init")


def _print_list(title: str, lines: list[str]) -> None:
    for line in lines[:SHOWN]:
        click.echo(f"{title}: {line}")
    if len(lines) > SHOWN:
        click.echo(f"{title}: {len(lines) - SHOWN} more (--json lists all)")
