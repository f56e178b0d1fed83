"""Studies with invented numbers, made through the real Study class."""

import dataclasses
import json
import math

import numpy as np

from fastnas.blueprint import Lineage, expand, parse
from fastnas.search.front import search_front
from fastnas.search.record import REJECTED, WAITING, Final, Record
from fastnas.spaces import SerialRules, SerialSpace

ANCESTOR = "240x320/basic:11-21-21-21,base=32,stem=3x3,norm=gn/fpn:64/rpn:200,scale=4/rcnn:256/classes:3"
CONFIG = {
    "space": "spnas",
    "seed": 0,
    "candidates": 8,
    "limits": {"latency_ms": 27.0, "params": None},
    "data": {"root": "bccd", "fraction": 1.0},
    "epochs": {"ancestor": 6, "child": 4, "final": 12},
}
ENVIRONMENT = {"engine": "onnxruntime", "version": "1.22.0", "precision": "fp32", "threads": 1, "device": "A CPU of 2 cores"}
PARTS = ("rpn_objectness", "rpn_box", "head_class", "head_box")


def candidate(blueprint, lineage=None, state=WAITING, ms=None, reason="") -> Record:
    network = expand(blueprint)
    ms = ms if ms is not None else 4.0 + network.macs / 1e8
    return Record(0, blueprint, lineage or Lineage(), state, network.params, network.macs, ms, 0.95 * ms, 1.06 * ms, reason=reason)


def write_metrics(folder, phase, epochs, ap, rng, error="") -> None:
    lines = []
    for step in range(24):
        epoch = (step + 1) / 24 * epochs
        parts = {name: round(float(0.55 * math.exp(-epoch / 5) + 0.08 + 0.02 * rng.random()), 4) for name in PARTS}
        loss = round(sum(parts.values()), 4)
        lines.append({"phase": phase, "epoch": epoch, "loss": loss, "losses": parts, "lr": 1e-3, "images_per_second": 31.5})
    end = {"error": error} if error else {"ap": ap, "ap50": ap + 0.3}
    lines.append({"phase": phase, "epoch": epochs, **end})
    with open(folder / "metrics.jsonl", "a") as handle:
        handle.writelines(json.dumps(line) + "\n" for line in lines)


def finish(study, id, ap, epochs=4.0, total=None, seed=0) -> None:
    """Finishes the search training of a candidate."""
    folder = study.start(id)
    write_metrics(folder, "search", epochs, ap, np.random.default_rng(seed))
    (folder / "weights.safetensors").write_bytes(b"weights")
    study.finish(id, {"ap": ap, "ap50": ap + 0.3}, epochs, total or epochs, 61.5, folder / "weights.safetensors")


def finish_final(study, record, ap, ms, epochs=12.0) -> None:
    folder = study.candidate_folder(record.id)
    write_metrics(folder, "final", epochs, ap, np.random.default_rng(record.id))
    (folder / "final.safetensors").write_bytes(b"weights")
    weights = f"candidates/{record.id}/final.safetensors"
    study.finish_final(record.id, Final(ap, ap + 0.3, {"ap": ap, "ap50": ap + 0.3}, ms, epochs, 240.0, weights))


def grow(study, count: int, finals: int = 3, seed: int = 1) -> None:
    """Fills a study with `count` candidates: mostly finished, some rejected, one failed."""
    rng = np.random.default_rng(seed)
    space = SerialSpace(parse(ANCESTOR), SerialRules(max_blocks=24))
    study.set_meta("environment", ENVIRONMENT)
    done = []
    seen = set()
    while len(seen) < count:
        parent = done[int(rng.integers(max(0, len(done) - 6), len(done)))] if done else None
        mutation = space.mutate(parent.blueprint, rng) if parent else None
        blueprint = mutation.blueprint if mutation else space.ancestor
        if blueprint.text in seen:
            continue
        seen.add(blueprint.text)
        lineage = Lineage(parent.id, mutation.operations, mutation.blocks) if mutation else Lineage()
        record = candidate(blueprint, lineage)
        if record.predicted_ms > CONFIG["limits"]["latency_ms"]:
            reason = f"predicted {record.predicted_ms:.1f} ms, over the limit of 27 ms"
            study.add(dataclasses.replace(record, state=REJECTED, reason=reason))
            continue
        record = study.add(record)
        if record.id == 4:
            folder = study.start(record.id)
            write_metrics(folder, "search", 1.5, 0, rng, error="loss is not finite at step 41")
            study.fail(record.id, "loss is not finite at step 41", 20.0)
            continue
        total = 6.0 if parent is None else parent.total_epochs + 4
        ap = 0.40 + 0.035 * math.log(record.macs / 1e9 + 1) + 0.012 * min(total, 26) ** 0.5 + 0.015 * float(rng.standard_normal())
        finish(study, record.id, round(ap, 4), 6.0 if parent is None else 4.0, total, seed=record.id)
        done.append(study.records()[record.id])
    if finals:
        front = search_front(study.records())
        for record in [*front[-finals:], *(r for r in done[:1] if r not in front[-finals:])]:
            finish_final(study, record, round(record.ap + 0.07, 4), round(record.predicted_ms * 1.04, 3))
