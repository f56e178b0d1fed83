"""The training recipe of a candidate, checked field by field. How long it trains (its fidelity) is said apart from it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """Part of a configuration: frozen, numbers are finite, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Sampling(Section):
    """How many anchors and regions an image contributes to the loss."""

    anchors: int = Field(256, ge=1, le=100_000)
    anchor_positives: float = Field(0.5, gt=0, le=1)
    regions: int = Field(128, ge=1, le=10_000)
    region_positives: float = Field(0.25, gt=0, le=1)
    proposals: int = Field(300, ge=1, le=10_000)  # kept from the RPN before sampling


class Augmentation(Section):
    """Random changes of the training images."""

    horizontal_flip: float = Field(0.5, ge=0, le=1)
    vertical_flip: float = Field(0.0, ge=0, le=1)
    color: float = Field(0.0, ge=0, le=1)  # strength of brightness, contrast and saturation changes
    zoom: tuple[float, float] = (1.0, 1.0)

    @field_validator("zoom")
    @classmethod
    def _check_zoom(cls, zoom: tuple[float, float]) -> tuple[float, float]:
        if not 0.1 <= zoom[0] <= zoom[1] <= 10:  # the rule of fastnas.data.augment.Augment, checked before any work
            raise ValueError("choose a range like [0.75, 1.3] within 0.1 to 10")
        return zoom


class TrainConfig(Section):
    """AdamW with linear warm-up and cosine; see loop.py."""

    batch_size: int = Field(8, ge=1, le=4096)
    lr: float = Field(1e-3, gt=0, le=100)
    weight_decay: float = Field(0.05, ge=0, le=100)
    warmup: float = Field(0.1, ge=0, le=1)  # fraction of the steps
    final_lr: float = Field(0.01, ge=0, le=1)  # fraction of `lr` at the end of the cosine
    clip: float = Field(5.0, gt=0)
    ema: float = Field(0.99, ge=0, lt=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    augment: Augmentation = Augmentation()
    sampling: Sampling = Sampling()


class TrainRun(Section):
    """One training outside of a search."""

    epochs: float = Field(12, gt=0, le=10_000)
    seed: int = Field(0, ge=0, le=2**31 - 1)
    init: str | None = None  # weights file with the same backbone to start from; none: fresh weights
    train: TrainConfig = TrainConfig()
