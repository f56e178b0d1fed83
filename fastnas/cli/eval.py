"""`fastnas eval`: COCO's twelve numbers of a trained detector."""

import sys

import click

from fastnas.cli.main import common_options


@click.command("eval")
@click.option("--weights", required=True, metavar="FILE", type=click.Path(), help="Weights, or ONNX that export wrote.")
@click.option("--data", required=True, metavar="DIR", type=click.Path(), help="COCO-format data, as of fastnas search.")
@click.option("--split", default="val", show_default=True, help="Which annotations: instances_SPLIT.json.")
@click.option("--batch", type=click.IntRange(1, 1024), default=8, show_default=True, help="Images that are detected on together.")
@common_options
def command(weights, data, split, batch, as_json):
    """Evaluate the detector of a weights FILE on a data set with pycocotools: AP, AP50, AP75, AP and AR by size, AR at 1, 10, 100.

    Classes are matched by name where the weights know names, else by order. Images are scaled to exactly the blueprint's input size
    and normalized as in training; everything is computed in float32. -1: the data has no box of that size.
    """
    from fastnas.data.classes import match_classes
    from fastnas.data.coco import read_coco
    from fastnas.data.dataset import DetectionData
    from fastnas.data.problems import summarize
    from fastnas.export.predictor import open_predictor
    from fastnas.train.evaluate import coco_metrics, collect

    predictor = open_predictor(weights)
    images = DetectionData(read_coco(data, split), predictor.blueprint.input)
    ids = match_classes(predictor.classes, predictor.blueprint.classes, images.split)
    results = collect(predictor.find, images, ids, batch)
    for line in summarize([*images.split.problems, *images.problems]):
        print(f"data: {line}", file=sys.stderr)
    unknown = [category.name for category in images.split.classes if category.id not in ids]
    if unknown:
        print(f"the weights do not know {', '.join(unknown)}: their AP is 0", file=sys.stderr)
    metrics = coco_metrics(images.split, results, final=True)
    if not as_json:
        for metric, value in metrics.items():
            click.echo(f"{metric:10} {value:.3f}")
    return {
        "weights": weights,
        "blueprint": predictor.blueprint.text,
        "data": str(data),
        "split": split,
        "images": len(images),
        "detections": len(results),
        "unknown_classes": unknown,
        "metrics": metrics,
    }
