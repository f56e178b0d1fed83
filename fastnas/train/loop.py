"""Training of one candidate: bf16 where it pays, channels-last, warm-up + cosine, clipping, EMA, and a guard against NaN."""

import math
import time
from collections.abc import Callable

import torch
from torch import nn

from fastnas.data.dataset import Augment, DetectionData
from fastnas.errors import FastnasError
from fastnas.models.detector import Detector
from fastnas.ops import standardized
from fastnas.train.config import TrainConfig
from fastnas.train.ema import Ema
from fastnas.train.evaluate import normalize
from fastnas.train.losses import detection_losses
from fastnas.train.precision import autocast, computed_in


class Diverged(FastnasError):
    """The loss of a candidate is no number any more; nothing of it is kept."""


def train(
    detector: Detector,
    data: DetectionData,
    config: TrainConfig,
    epochs: float,
    seed: int,
    log: Callable[[dict], None] = lambda line: None,
) -> nn.Module:
    """Trains `detector` in place and returns the averaged model (EMA), which is the one to evaluate and to keep.

    log gets about ten lines an epoch at most: epoch, loss and its parts, lr, images_per_second. Raises Diverged.
    """
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    detector = detector.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(detector, config)
    per_epoch = max(1, len(data) // config.batch_size)
    total = max(1, round(epochs * per_epoch))
    ema = Ema(detector, config.ema)
    watch = _Watch(per_epoch, log)
    batches = _endless(data, config, rng)
    try:
        for step in range(total):
            rate = config.lr * schedule(step, total, config.warmup, config.final_lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = next(batches)
            with standardized(detector, computed_in(config.precision)):  # of all layers in one call, forward and backward
                with autocast(config.precision):
                    losses = detection_losses(detector, normalize(batch.images), batch.targets, config.sampling, rng)
                loss = sum(losses.values())
                if not math.isfinite(loss.item()):
                    parts = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
                    raise Diverged(f"loss is {loss.item()} at epoch {step / per_epoch:.2f} ({parts}), lr {rate:.2g}")
                optimizer.zero_grad()
                loss.backward()
            norm = nn.utils.clip_grad_norm_(detector.parameters(), config.clip, foreach=True)
            if not math.isfinite(norm.item()):
                raise Diverged(f"gradient norm is {norm.item()} at epoch {step / per_epoch:.2f}, lr {rate:.2g}")
            optimizer.step()
            ema.update(detector)
            watch.step(step + 1, total, losses, rate, len(batch.images))
    finally:
        batches.close()
    if not all(torch.isfinite(tensor).all() for tensor in ema.model.state_dict().values()):
        raise Diverged(f"weights are no numbers after epoch {epochs:g}")
    return ema.model.eval()


def schedule(step: int, total: int, warmup: float, final: float) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine down to `final`."""
    ramp = max(1, round(warmup * total))
    if step < ramp:
        return (step + 1) / ramp
    progress = (step - ramp) / max(1, total - ramp)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(detector: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; no weight decay on norms and biases."""
    plain = [p for p in detector.parameters() if p.ndim <= 1]
    decayed = [p for p in detector.parameters() if p.ndim > 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _endless(data: DetectionData, config: TrainConfig, rng: torch.Generator):
    augment = Augment(**config.augment.model_dump())
    while True:
        yield from data.batches(config.batch_size, rng, augment, drop_last=len(data) >= config.batch_size)


class _Watch:
    """Averages the losses between log lines."""

    def __init__(self, per_epoch: int, log: Callable[[dict], None]):
        self.per_epoch, self.log = per_epoch, log
        self.every = max(1, per_epoch // 5)
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, float] = {}
        self.steps = self.images = 0
        self.since = time.monotonic()

    def step(self, step: int, total: int, losses: dict, rate: float, images: int) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()
        self.steps += 1
        self.images += images
        if step % self.every == 0 or step == total:
            means = {name: value / self.steps for name, value in self.sums.items()}
            self.log(
                {
                    "epoch": step / self.per_epoch,
                    "loss": sum(means.values()),
                    "losses": means,
                    "lr": rate,
                    "images_per_second": self.images / (time.monotonic() - self.since),
                }
            )
            self._clear()
