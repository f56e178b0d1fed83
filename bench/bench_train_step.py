"""One training step (forward, losses, backward, clipping, AdamW) of whole detectors, ours against the same on other operators.

`fastnas`: as the package trains. `others`: the same modules, weights, data and random numbers, with every operator of fastnas.ops
replaced by torchvision's, or by eager PyTorch (bench/_peers.py). `operators for free`: with every operator replaced by its recorded
result, so what is left is convolutions, linear layers, losses and optimizer; by this much no operators could beat `others`
(`bound_median`, `bound_min` of a row).

The learning rate is 0, so that every step does the same work on the same weights. Losses are compared before anything is timed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from _bench import Case, main
from _peers import PEERS, Replay, Swap, available
from torch import Tensor, nn

from fastnas.blueprint import PRESETS, Blueprint, parse
from fastnas.models import build
from fastnas.train.losses import detection_losses
from fastnas.train.precision import autocast

GOAL = 1.5  # in bf16
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
R50_GN = "800x1333/bottleneck:111-2111-211111-211,norm=gn/fpn:256/rpn:1000/rcnn:1024/classes:90"


@dataclass(frozen=True)
class Size:
    """What a device is given to do: images of (height, width); in two stages regions and proposals kept of each."""

    images: int
    input: tuple[int, int]
    regions: int = 0
    proposals: int = 0

    @property
    def sampling(self) -> SimpleNamespace:  # the fields of fastnas.train.config.Sampling
        return SimpleNamespace(
            anchors=256, anchor_positives=0.5, regions=self.regions, region_positives=0.25, proposals=self.proposals
        )


TWO_STAGE = {"cpu": Size(2, (192, 256), 128, 300), "cuda": Size(4, (800, 1333), 512, 1000)}
ONE_STAGE = {"cpu": Size(2, (256, 256)), "cuda": Size(16, (512, 512))}
# name -> its blueprint (None: this version of the package has none), and what it is given to do
MODELS: dict[str, tuple[Blueprint | None, dict[str, Size]]] = {
    "fasterrcnn-r50-fpn": (PRESETS["fasterrcnn-r50-fpn"], TWO_STAGE),
    "fasterrcnn-r50-fpn gn": (parse(R50_GN), TWO_STAGE),
    "efficientdet-d0": (PRESETS.get("efficientdet-d0"), ONE_STAGE),
}


class Step:
    """One model with its data on a device; calling it does one training step and returns the losses."""

    def __init__(self, blueprint: Blueprint, device: torch.device, dtype: str, size: Size) -> None:
        torch.manual_seed(0)
        self.device, self.precision, self.size = device, dtype, size
        self.model = build(blueprint.replace(input=size.input)).to(device, memory_format=torch.channels_last).train()
        # The package's recipe (fastnas.train.loop), but for the rate.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=0.05, fused=True)
        self.rng = torch.Generator(device)
        shape = (size.images, 3, *size.input)
        self.images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
        self.targets = [target(size.input, blueprint.classes, seed, device) for seed in range(size.images)]

    @contextmanager
    def in_precision(self, dtype: str) -> Iterator[None]:
        own, self.precision = self.precision, dtype
        try:
            yield
        finally:
            self.precision = own

    def losses(self) -> dict[str, Tensor]:
        self.rng.manual_seed(0)
        # New tensors of the package's box arithmetic belong on the device of the features.
        with torch.device(self.device) if self.device.type != "cpu" else nullcontext(), autocast(self.precision, self.device):
            return detection_losses(self.model, self.images, self.targets, self.size.sampling, self.rng)

    def __call__(self) -> dict[str, Tensor]:
        losses = self.losses()
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0, foreach=True)
        self.optimizer.step()
        return losses


def target(size: tuple[int, int], classes: int, seed: int, device: torch.device, count: int = 8) -> SimpleNamespace:
    """Random boxes with sides from 16 pixels to the image's, evenly in their logarithm."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([float(size[1]), float(size[0])])
    sides = 16 * (limit / 16) ** torch.rand(count, 2, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * (limit - sides)
    labels = torch.randint(1, classes + 1, (count,), generator=generator)
    boxes = torch.cat([corners, corners + sides], 1)
    return SimpleNamespace(boxes=boxes.to(device), labels=labels.to(device), ignore=torch.zeros(0, 4, device=device))


def step_case(name: str, blueprint: Blueprint, device: torch.device, dtype: str, size: Size) -> Case:
    """The row of one model."""
    return Case(
        "train_step", f"{name} {size.images}x3x{size.input[0]}x{size.input[1]}", dtype, "nhwc", "both",
        goal=GOAL if dtype == "bf16" else None, bound="operators for free",
        build=partial(candidates, blueprint, device, dtype, size),
    )  # fmt: skip


def candidates(blueprint: Blueprint, device: torch.device, dtype: str, size: Size) -> dict[str, dict]:
    """Candidates and facts of a row. Raises AssertionError where their losses differ."""
    step = Step(blueprint, device, dtype, size)
    replay = Replay(step)
    swap = Swap({operator: PEERS[operator] for operator in available()})

    def others() -> dict[str, Tensor]:
        with swap:
            return step()

    def for_free() -> dict[str, Tensor]:
        return replay(step)

    # Operators are compared in float32: a rounding to bfloat16 picks other regions now and then, and the head's losses differ.
    with step.in_precision("fp32"):
        assert_same_losses("fp32", step, others)
    ours = assert_same_losses(dtype, step, for_free)
    return {
        "candidates": {"fastnas": step, "others": others, "operators for free": for_free},
        "facts": {"losses": ours, "operator_calls": dict(replay.calls), "convolutions_ms": convolutions(step)},
    }


def assert_same_losses(dtype: str, step: Step, candidate: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
    """The losses of the step. Raises AssertionError where the candidate's differ."""
    ours, theirs = values(step()), values(candidate())
    for loss, value in ours.items():
        assert abs(theirs[loss] - value) <= TOLERANCE[dtype] * max(abs(value), 0.1), (candidate.__name__, ours, theirs)
    return ours


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}


def convolutions(step: Step) -> float:
    """Milliseconds of one step inside convolutions, forward and backward, as torch's profiler has it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if step.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
    own = "device_time_total" if step.device.type == "cuda" else "cpu_time_total"
    events = [event for event in profile.key_averages() if event.key in ("aten::convolution", "aten::convolution_backward")]
    return round(sum(getattr(event, own) for event in events) / 1e3, 3)


def cases(device: torch.device) -> Iterator[Case]:
    for name, (blueprint, sizes) in MODELS.items():
        for dtype in ("fp32", "bf16") if device.type == "cpu" else ("bf16",):
            if blueprint is not None:
                yield step_case(name, blueprint, device, dtype, sizes[device.type])


if __name__ == "__main__":
    main("train_step", cases)
