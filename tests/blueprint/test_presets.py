"""Named blueprints: parameters of published detectors, and of the backbones that torchvision and timm have."""

import pytest
import timm
import torch
import torchvision

from fastnas.blueprint import PRESETS, expand

# Millions as published; for SPNet what an independent count of the released configurations gives.
PUBLISHED = {"smnas-e0": 16.23, "smnas-e2": 33.02, "smnas-e3": 52.05, "spnet-ecp": 114.7, "spnet-xb": 107.3}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    millions = PUBLISHED[name]
    assert round(expand(PRESETS[name]).params / 1e6, 2 if millions < 100 else 1) == millions


def test_parameters_of_c4_are_those_of_detectron2():
    assert expand(PRESETS["fasterrcnn-r50-c4"]).params == 33_844_764


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("fasterrcnn-r18-fpn", torchvision.models.resnet18),
        ("fasterrcnn-r34-fpn", torchvision.models.resnet34),
        ("fasterrcnn-r50-fpn", torchvision.models.resnet50),
        ("fasterrcnn-r101-fpn", torchvision.models.resnet101),
        ("fasterrcnn-x50-fpn", torchvision.models.resnext50_32x4d),
        ("fasterrcnn-x101-fpn", lambda: timm.create_model("resnext101_32x4d")),
    ],
)
def test_backbones_count_what_others_have(name, make):
    with torch.device("meta"):
        peer = make()
    blocks = [block for block in expand(PRESETS[name]).blocks if block.name.startswith("backbone.")]
    expected = sum(p.numel() for key, p in peer.named_parameters() if not key.startswith("fc."))
    assert sum(block.params for block in blocks) == expected
