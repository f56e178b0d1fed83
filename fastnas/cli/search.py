"""`fastnas search`: finds detectors on the accuracy-latency front of your data and your device."""

import json
import time
from pathlib import Path

import click

from fastnas.cli.main import common_options
from fastnas.search.config import SPACES


@click.command()
@click.option("--space", required=True, type=click.Choice(SPACES), help="What to search; alone it runs the space's demo config.")
@click.option("--config", metavar="FILE", type=click.Path(), help="YAML configuration (see configs/ in the source).")
@click.option("--set", "changes", metavar="KEY=VALUE", multiple=True, help="Change one key, e.g. train.lr=0.002.")
@click.option("--data", metavar="DIR", type=click.Path(), help="COCO-format data, see above; none: a generated set.")
@click.option("--init", metavar="FILE", type=click.Path(), help="Weights with the ancestor's backbone, e.g. of fastnas convert.")
@click.option("--engine", metavar="NAME[:PRECISION]", help="What measures latency (default: onnxruntime, one CPU thread).")
@click.option("--device", metavar="NAME", help="A device that the table knows, e.g. v100 (default: this one, or its only one).")
@click.option("--max-latency", metavar="MS", type=click.FloatRange(min=0, min_open=True), help="Reject slower candidates.")
@click.option("--table", metavar="FILE", type=click.Path(), help="Latency table (default: the user's, see fastnas doctor).")
@click.option("--candidates", metavar="N", type=click.IntRange(min=1), help="How many candidates to train, the ancestor included.")
@click.option("--workers", metavar="N", type=click.IntRange(min=1, max=64), help="Candidates that train side by side.")
@click.option("--out", metavar="DIR", type=click.Path(), help="Folder of the study (default: runs/SPACE-DATE-TIME).")
@click.option("--resume", is_flag=True, help="Go on with the study in --out; finished candidates are not repeated.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the search, the trainings and the generated data order.")
@common_options
def command(
    space, config, changes, data, init, engine, device, max_latency, table, candidates, workers, out, resume, seed, as_json
):  # fmt: skip
    """Search SPACE; ends with the Pareto table, pareto.json and report.html.

    Your data: a folder with annotations/instances_train.json and annotations/instances_val.json in COCO format (images, annotations
    with bbox [x, y, width, height] and category_id, categories) and the pictures in images/. COCO's own layout (train2017/, ...)
    works too. Without --data a generated set of shapes is used.
    """
    from fastnas.cli.progress import SearchDisplay
    from fastnas.errors import InputError
    from fastnas.report import write_report
    from fastnas.report.table import front_table
    from fastnas.search import open_study, run

    if resume and not out:
        raise InputError("--resume needs --out: the folder of the study to go on with")
    options = {
        "data.root": data,
        "init": init,
        "engine": engine,
        "device": device,
        "limits.latency_ms": max_latency,
        "table": table,
        "candidates": candidates,
        "workers": workers,
        "seed": seed,
    }
    changes = (*changes, *(f"{key}={_yaml(value)}" for key, value in options.items() if value is not None))
    out = Path(out or f"runs/{space}-{time.strftime('%Y%m%d-%H%M%S')}")
    with SearchDisplay() as display:
        try:
            front = run(space, out, config, changes, resume, display)
        except KeyboardInterrupt:
            if (out / "study.db").exists():
                display.note(f"stopped; go on with: fastnas search --space {space} --out {out} --resume")
            raise
    report = write_report(out)
    if not as_json:
        with open_study(out) as study:
            click.echo(front_table(study.records()))
        click.echo(f"\n{out / 'pareto.json'}\n{report}")
    return {"study": str(out), "report": str(report), "pareto": front}


def _yaml(value) -> str:
    """JSON is YAML: a folder named `yes` stays text."""
    return json.dumps(value, ensure_ascii=False)
