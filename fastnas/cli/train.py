"""`fastnas train`: trains one blueprint on a data set."""

import sys
import time
from pathlib import Path

import click

from fastnas.cli.main import common_options


@click.command()
@click.argument("blueprint")
@click.option("--data", required=True, metavar="DIR", type=click.Path(), help="COCO-format data, as of fastnas search.")
@click.option("--out", metavar="DIR", type=click.Path(), help="Folder for weights and log (default: runs/train-DATE-TIME).")
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), help="How long (default 12).")
@click.option("--init", metavar="FILE", type=click.Path(), help="Weights to start from, e.g. of fastnas convert; see above.")
@click.option("--seed", type=click.IntRange(min=0), help="Of fresh weights and of the order of the data (default 0).")
@click.option("--set", "changes", metavar="KEY=VALUE", multiple=True, help="Change one key, e.g. train.lr=0.002.")
@common_options
def command(blueprint, data, out, epochs, init, seed, changes, as_json):
    """Train BLUEPRINT and evaluate it; writes weights.safetensors and metrics.jsonl into the folder --out.

    The number of classes becomes that of the data. Images are scaled to exactly the blueprint's input size and normalized with
    ImageNet's mean and deviation. Keys and defaults of --set are those of `train:` in a search's configuration.

    --init: the file must hold the whole backbone of the blueprint, as a converted checkpoint or any trained detector with that
    backbone does; blocks of the neck and the heads with the same name get the tensors whose shapes fit, all others start fresh.
    """
    from fastnas.blueprint import load
    from fastnas.search.config import apply_change, check_section
    from fastnas.train.config import TrainRun
    from fastnas.train.single import WEIGHTS, train_single

    name, described = load(blueprint)
    content = {key: value for key, value in (("epochs", epochs), ("init", init), ("seed", seed)) if value is not None}
    for change in changes:
        apply_change(content, change)
    config = check_section(TrainRun, content, "--set")
    out = Path(out or f"runs/train-{time.strftime('%Y%m%d-%H%M%S')}")
    trained, outcome = train_single(described, data, out, config, _note, _Progress(config.epochs))
    if not as_json:
        for metric, value in outcome.metrics.items():
            click.echo(f"{metric:10} {value:.3f}")
        click.echo(out / WEIGHTS)
    return {
        "name": name,
        "blueprint": trained.text,
        "out": str(out),
        "weights": str(out / WEIGHTS),
        "epochs": config.epochs,
        "seconds": round(outcome.seconds, 1),
        "metrics": outcome.metrics,
    }


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Progress:
    """A line for every tenth of the training."""

    def __init__(self, epochs: float):
        self.epochs, self.begin, self.told = epochs, time.monotonic(), 0

    def __call__(self, share: float) -> None:
        share = min(share, 1.0)  # the last step may go over the end
        if (tenth := int(10 * share)) > self.told:
            self.told = tenth
            left = (time.monotonic() - self.begin) * (1 - share) / share
            _note(f"epoch {share * self.epochs:.1f} of {self.epochs:g}, about {left:.0f} s left")
