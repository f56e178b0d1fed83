"""Whole detectors, image to detections: every preset against the package that its network is known from, with the same weights.

`fastnas`: the detector as it is trained, as its peers are. `fastnas deployed`: its folded form, which `fastnas predict` and
`fastnas eval` run. `effdet`: its models with its own selection and suppression (DetBenchPredict). `torchvision`: its detection
models. Both as they come and in channels-last. Presets that neither package builds are left out. Parameters and multiply-adds of
both stand in the facts of a row: ours as `fastnas.blueprint` counts them, the peer's as `torch.utils.flop_counter` saw them run.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import torch
from _bench import Case, main
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection

from fastnas.blueprint import PRESETS, Blueprint, expand
from fastnas.models import build
from fastnas.models.convert import convert, find_format
from fastnas.models.fold import folded
from fastnas.train.precision import autocast

try:
    import effdet
except ImportError:  # then its presets are left out
    effdet = None

GOAL = 1.0  # at least as fast
TORCHVISION = {"fasterrcnn-r50-fpn": detection.fasterrcnn_resnet50_fpn, "retinanet-r50-fpn": detection.retinanet_resnet50_fpn}
SIZE = 800, 1312  # of torchvision's images: multiples of 32 within its limits, so that it neither resizes nor pads them
Detect = Callable[[Tensor], object]


def peer_of(name: str, blueprint: Blueprint) -> tuple[str, nn.Module, Callable[[nn.Module], Detect]]:
    """(package, its model, model -> what detects in a batch of images)."""
    if name in TORCHVISION:
        size = {"min_size": min(blueprint.input), "max_size": max(blueprint.input)}
        model = TORCHVISION[name](weights=None, weights_backbone=None, image_mean=[0.0] * 3, image_std=[1.0] * 3, **size)
        return "torchvision", model, lambda model: lambda images: model(list(images))
    config = effdet.get_efficientdet_config(f"tf_{name.replace('-', '_')}")
    config.image_size = blueprint.input
    return "effdet", effdet.EfficientDet(config, pretrained_backbone=False), effdet.DetBenchPredict


def preset_case(name: str, blueprint: Blueprint, device: torch.device) -> Case:
    dtype = "fp32" if device.type == "cpu" else "bf16"
    size = f"1x3x{blueprint.input[0]}x{blueprint.input[1]}"
    made = partial(models, name, blueprint, device)
    return Case("detect", f"{name} {size}", dtype, "nhwc", "forward", goal=GOAL, build=made)


def models(name: str, blueprint: Blueprint, device: torch.device) -> dict[str, dict]:
    """Candidates and facts of a preset."""
    torch.manual_seed(0)
    network, ours = expand(blueprint), build(blueprint)
    package, model, detects = peer_of(name, blueprint)
    source = model.state_dict()
    done = convert(source, ours, find_format(source))
    assert done.complete, (name, done.left)
    ours.load_state_dict(done.state)
    ours, model = ours.eval().to(device, memory_format=torch.channels_last), model.eval().to(device)
    images = torch.randn(1, 3, *blueprint.input, device=device)
    last = images.contiguous(memory_format=torch.channels_last)
    candidates = {
        "fastnas": run(ours, last),
        "fastnas deployed": run(folded(ours, torch.float32 if device.type == "cpu" else torch.bfloat16), last),
        package: run(detects(model), images),
        f"{package} channels-last": run(detects(deepcopy(model).to(memory_format=torch.channels_last)), last),
    }
    facts = {
        "params": network.params,
        f"{package}_params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": network.macs,
        f"{package}_macs": macs(detects(model), images),
    }
    return {"candidates": candidates, "facts": facts}


def run(detect: Detect, images: Tensor) -> Callable[[], object]:
    def once() -> object:
        with torch.no_grad(), autocast("fp32" if images.device.type == "cpu" else "bf16", images.device):
            return detect(images)

    return once


def macs(detect: Detect, images: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        detect(images)
    return counter.get_total_flops() // 2


def cases(device: torch.device) -> Iterator[Case]:
    for name, blueprint in PRESETS.items():
        if name in TORCHVISION:
            yield preset_case(name, blueprint.replace(input=SIZE), device)
        elif name.startswith("efficientdet-") and effdet is not None:
            yield preset_case(name, blueprint, device)


if __name__ == "__main__":
    main("presets", cases)
