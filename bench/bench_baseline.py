"""The hand-made detector that a search has to beat: torchvision's Faster R-CNN, ResNet-18 with GroupNorm, FPN of 64 channels.

    python bench/bench_baseline.py --data DIR [--epochs 16] [--out bench/results/baseline.json]

Trains it from scratch on DIR at 240x320 (AdamW one-cycle 1e-3, batch 8, flips, bf16 where the processor has it), evaluates it with
pycocotools, and times the same network, written as a blueprint, with the engine that a search uses. Compare with the `pareto.json`
of a search on the same data.
"""

import argparse
import json
import os
import sys
import time

import torch
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from fastnas.blueprint import expand, parse
from fastnas.data.dataset import Augment, get_data
from fastnas.files import write_atomic
from fastnas.latency import Oracle
from fastnas.train.evaluate import coco_metrics
from fastnas.train.precision import autocast

SIZE = (240, 320)
SAME = "240x320/basic:11-21-21-21,norm=gn/fpn:64/rpn:200,scale=4,topk=500/rcnn:1024/classes:{classes}"
LEVELS = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}


def make_baseline(classes: int) -> FasterRCNN:
    body = resnet18(weights=None, norm_layer=lambda channels: torch.nn.GroupNorm(16, channels))
    backbone = BackboneWithFPN(body, LEVELS, [64, 128, 256, 512], 64)
    anchors = AnchorGenerator(((12,), (24,), (48,), (96,), (160,)), ((0.5, 1.0, 2.0),) * 5)
    return FasterRCNN(
        backbone, classes + 1, min_size=SIZE[0], max_size=SIZE[1], rpn_anchor_generator=anchors, box_batch_size_per_image=128,
        rpn_pre_nms_top_n_train=500, rpn_post_nms_top_n_train=300, rpn_pre_nms_top_n_test=500, rpn_post_nms_top_n_test=200,
    ).to(memory_format=torch.channels_last)  # fmt: skip


def train(model, data, epochs: int) -> None:
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    steps = (len(data) // 8) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        model.train()
        for batch in data.batches(8, rng, Augment(horizontal_flip=0.5, vertical_flip=0.5), drop_last=True):
            targets = [{"boxes": target.boxes, "labels": target.labels} for target in batch.targets]
            with autocast("auto"):
                loss = sum(model(list(batch.images.float() / 255), targets).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}: loss {loss.item():.3f}", file=sys.stderr, flush=True)


@torch.no_grad()
def evaluate(model, data) -> dict[str, float]:
    model.eval()
    ids, results = [category.id for category in data.split.classes], []
    for batch in data.batches(8):
        with autocast("auto"):
            found = model(list(batch.images.float() / 255))
        for image_id, scale, image in zip(batch.image_ids, batch.scales, found, strict=True):
            boxes = image["boxes"].float() / torch.cat([scale, scale])
            boxes[:, 2:] -= boxes[:, :2]
            for box, score, label in zip(boxes.tolist(), image["scores"].tolist(), image["labels"].tolist(), strict=True):
                results.append({"image_id": image_id, "category_id": ids[label - 1], "bbox": box, "score": score})
    return coco_metrics(data.split, results, final=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="COCO-format folder (left out: nothing to do)")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--out", default="bench/results/baseline.json")
    options = parser.parse_args()
    if not options.data:
        print("bench_baseline: skipped, it needs --data DIR", file=sys.stderr)
        return
    torch.manual_seed(0)
    train_data, val_data = (get_data(options.data, split, SIZE) for split in ("train", "val"))
    classes = len(train_data.split.classes)
    blueprint = parse(SAME.format(classes=classes))
    with Oracle.open() as oracle:
        timing, environment = oracle.measure_whole(blueprint), oracle.environment
    model = make_baseline(classes)
    begin = time.monotonic()
    train(model, train_data, options.epochs)
    seconds = time.monotonic() - begin
    result = {
        "command": f"python bench/bench_baseline.py --data DIR --epochs {options.epochs}",
        "environment": environment,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "images": [len(train_data), len(val_data)],
        "network": "torchvision FasterRCNN, resnet18 GroupNorm(16), FPN 64",
        "params": sum(p.numel() for p in model.parameters()),
        "same_as_blueprint": blueprint.text,
        "macs": expand(blueprint).macs,
        "latency_ms": timing.median_ms,
        "train_seconds": seconds,
        **evaluate(model, val_data),
    }
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
