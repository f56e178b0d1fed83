"""`fastnas export`: a trained detector as ONNX or as a TensorRT engine."""

from pathlib import Path

import click

from fastnas.cli.main import common_options


class Batch(click.ParamType):
    """A number of images, or `dynamic`."""

    name = "N|dynamic"

    def convert(self, value, param, ctx):
        if value == "dynamic" or isinstance(value, int):
            return value
        return click.IntRange(1, 1024).convert(value, param, ctx)


@click.command()
@click.argument("blueprint", required=False)
@click.option("--weights", required=True, metavar="FILE", type=click.Path(), help="What train, search or convert wrote.")
@click.option("--out", required=True, metavar="FILE", type=click.Path(), help="NAME.onnx, or NAME.engine for TensorRT.")
@click.option("--raw", is_flag=True, help="Without the suppression at the end: the outputs are what it reads.")
@click.option("--batch", metavar="N|dynamic", type=Batch(), default=1, help="Images a run: N (default 1) or any number.")
@click.option("--target", type=click.Choice(["onnxruntime", "tensorrt"]), help="Who takes the graph (default: the first).")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", help="Of the inside (default fp32).")
@click.option("--engine", metavar="NAME[:PRECISION]", default="tensorrt", help="What builds NAME.engine (default: tensorrt).")
@click.option("--check", "images", metavar="IMAGE", multiple=True, type=click.Path(), help="Compare on it (default: noise).")
@common_options
def command(blueprint, weights, out, raw, batch, target, precision, engine, images, as_json):
    """Export the detector of a weights FILE; it is compared with PyTorch before the file is written.

    BLUEPRINT: only where the weights shall run in another one than they name, such as another input size.

    Input `image`: float32 (N, 3, H, W), RGB, 0 to 255, scaled to exactly H x W (bilinear with antialias); the normalization of the
    training is inside. Outputs: `boxes` (N, D, 4) as x1, y1, x2, y2 in pixels of the scaled image, `scores` (N, D), `labels` (N, D)
    from 1; rows with score 0 are no detections. Blueprint and class names are in the file's metadata. The graphs of --target
    onnxruntime and tensorrt are those that the engines of these names are timed with; the second sorts at most 3840 candidates.
    """
    from fastnas.blueprint import load
    from fastnas.errors import InputError
    from fastnas.export.engine_file import SUFFIXES, open_builder, write_engine
    from fastnas.export.onnx_file import Form, export_onnx, output_shapes, write_onnx

    kind = Path(out).suffix
    if kind not in (".onnx", *SUFFIXES):
        raise InputError(f"cannot write {out}: let its name end in .onnx, {' or '.join(SUFFIXES)}")
    builds = kind in SUFFIXES
    if builds and (batch == "dynamic" or precision != "fp32" or target == "onnxruntime"):
        raise InputError("an engine has a fixed --batch, the target tensorrt, and its precision is written --engine tensorrt:fp16")
    builder = open_builder(engine) if builds else None  # fails before the work is done
    form = Form(raw, None if batch == "dynamic" else batch, "tensorrt" if builds else target or "onnxruntime", precision)
    exported = export_onnx(weights, form, load(blueprint)[1] if blueprint else None, images)
    shapes = output_shapes(exported.model)
    if builder:
        write_engine(out, exported, builder)
    else:
        write_onnx(out, exported)
    described = exported.description
    result = {
        "out": out,
        "blueprint": described.blueprint.text,
        "classes": described.classes,
        "raw": raw,
        "batch": batch,
        "target": engine if builds else form.target,
        "precision": precision,
        "outputs": shapes,
        "check": exported.check.to_dict(),
    }
    if not as_json:
        click.echo(f"compared with PyTorch on {exported.check}")
        for name, shape in shapes.items():
            click.echo(f"{name}: {' x '.join(map(str, shape))}")
        click.echo(out)
    return result
