"""Whole detectors, image to detections: every preset against the package that its network is known from, with the same weights.

`effdet`: its models with its own selection and suppression (DetBenchPredict). `torchvision`: its detection models. Both as they
come and in channels-last. Presets that no package builds are timed alone. Parameters and multiply-adds of both stand in the facts
of a row: ours as `fastnas.blueprint` counts them, the peer's as `torch.utils.flop_counter` saw them run.

The widest presets take minutes a row: `--only "efficientdet-d0 "` looks at one.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from _bench import Case, main
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection

from fastnas.blueprint import PRESETS, Blueprint, expand
from fastnas.models import build
from fastnas.models.convert import convert, find_format
from fastnas.train.precision import autocast

try:
    import effdet
except ImportError:  # then its presets are timed alone
    effdet = None

GOAL = 1.0  # at least as fast
TORCHVISION = {"fasterrcnn-r50-fpn": detection.fasterrcnn_resnet50_fpn, "retinanet-r50-fpn": detection.retinanet_resnet50_fpn}
SIZE = 800, 1312  # of torchvision's images: multiples of 32 within its limits, so that it neither resizes nor pads them
Detect = Callable[[Tensor], object]


def peer_of(name: str, blueprint: Blueprint) -> tuple[str, nn.Module, Callable[[nn.Module], Detect]] | None:
    """(package, its model, model -> what detects in a batch of images); None: no package builds this one."""
    if name in TORCHVISION:
        size = {"min_size": min(blueprint.input), "max_size": max(blueprint.input)}
        model = TORCHVISION[name](weights=None, weights_backbone=None, image_mean=[0.0] * 3, image_std=[1.0] * 3, **size)
        return "torchvision", model, lambda model: lambda images: model(list(images))
    if name.startswith("efficientdet-") and effdet is not None:
        config = effdet.get_efficientdet_config(f"tf_{name.replace('-', '_')}")
        config.image_size = blueprint.input
        return "effdet", effdet.EfficientDet(config, pretrained_backbone=False), effdet.DetBenchPredict
    return None


def preset_case(name: str, blueprint: Blueprint, device: torch.device) -> Case:
    torch.manual_seed(0)
    network, ours = expand(blueprint), build(blueprint)
    images = torch.randn(1, 3, *blueprint.input, device=device)
    last = images.contiguous(memory_format=torch.channels_last)
    facts = {"params": network.params, "macs": network.macs}
    runs: dict[str, Callable[[], object]] = {}
    if peer := peer_of(name, blueprint):
        package, model, detects = peer
        source = model.state_dict()
        done = convert(source, ours, find_format(source))
        assert done.complete, (name, done.left)
        ours.load_state_dict(done.state)
        model = model.eval().to(device)
        facts[f"{package}_params"] = sum(parameter.numel() for parameter in model.parameters())
        facts[f"{package}_macs"] = macs(detects(model), images)
        runs[package] = run(detects(model), images)
        runs[f"{package} channels-last"] = run(detects(deepcopy(model).to(memory_format=torch.channels_last)), last)
    ours = ours.eval().to(device, memory_format=torch.channels_last)
    size = "x".join(map(str, images.shape))
    dtype = "fp32" if device.type == "cpu" else "bf16"
    candidates = {"fastnas": run(ours, last), **runs}
    return Case("detect", f"{name} {size}", dtype, "nhwc", "forward", candidates, goal=GOAL if runs else None, facts=facts)


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
        yield preset_case(name, blueprint.replace(input=SIZE) if name in TORCHVISION else blueprint, device)


if __name__ == "__main__":
    main("presets", cases)
