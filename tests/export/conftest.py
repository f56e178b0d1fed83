"""Weights files of small detectors that detect a lot, and what must be equal of two sets of detections."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastnas.blueprint import parse
from fastnas.export.check import check_images
from fastnas.models import build
from fastnas.models.pixels import scale_and_shift
from fastnas.models.weights import save_weights

TEXTS = {
    "two-stage": "96x128/bottleneck:1-2-2,base=8,stem=3x3,norm=gn/fpn:16/rpn:40,scale=4/rcnn:32,detections=20/classes:3",
    "one-stage": "97x131/efficientnet:0.25x0.4/bifpn:16,repeats=2/effdet:2,detections=20/classes:3",
    "cascade": "96x128/basic:1-2-2,base=8/fpn:16/rpn:40,scale=4/cascade:2,hidden=32,detections=20/classes:3",
}
CLASSES = ["WBC", "RBC", "Platelets"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weights file of a form of detector, by its name in TEXTS."""
    folder = tmp_path_factory.mktemp("weights")
    for name, text in TEXTS.items():
        save_weights(folder / f"{name}.safetensors", trained(text), parse(text), CLASSES)
    return lambda name: folder / f"{name}.safetensors"


@pytest.fixture
def photographs(bccd) -> list[Path]:
    return sorted((bccd / "images").glob("*.jpg"))[:3]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[Path]:
    """Two of blurred noise, on which no score is so near 1 that detections tie."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(2):
        noise = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).resize((131, 97), Image.Resampling.BILINEAR)
        noise.save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@torch.no_grad()
def trained(text: str) -> nn.Module:
    """A detector with statistics of real activations; scores and boxes are spread as those of a trained one."""
    torch.manual_seed(0)
    blueprint = parse(text)
    detector = build(blueprint)
    for parameter in detector.parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn_like(parameter)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    scale, shift = map(torch.from_numpy, scale_and_shift())
    images = check_images(blueprint, 6).float() * scale + shift
    detector.train().dense(images)
    detector.eval()
    predicted, convs = {}, [name for name, module in detector.named_modules() if isinstance(module, nn.Conv2d)]
    classes, boxes = ([name for name in convs if name.startswith(f"head.{tower}.")][-1:] for tower in ("classes", "boxes"))
    for name, module in detector.named_modules():
        spread = 1.5 if name.endswith(("cls_logits", "cls_score", *classes)) else 0.3
        if spread == 1.5 or name.endswith(("bbox_pred", *boxes)):
            module.register_forward_hook(lambda m, _, out, s=spread: predicted.setdefault(m, (s, out)) and None)
    detector(images)
    for module, (spread, out) in predicted.items():
        module.weight *= spread / (out - out.mean()).std().clamp(min=1e-3)
        module._forward_hooks.clear()
    return detector
