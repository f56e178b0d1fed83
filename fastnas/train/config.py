"""The training recipe of a candidate, checked field by field. How long it trains (its fidelity) is said apart from it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Part of a configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sampling(Section):
    """How many anchors and regions an image contributes to the loss."""

    anchors: int = Field(256, ge=1)
    anchor_positives: float = Field(0.5, gt=0, le=1)
    regions: int = Field(128, ge=1)
    region_positives: float = Field(0.25, gt=0, le=1)
    proposals: int = Field(300, ge=1)  # kept from the RPN before sampling


class Augmentation(Section):
    """Random changes of the training images."""

    horizontal_flip: float = Field(0.5, ge=0, le=1)
    vertical_flip: float = Field(0.0, ge=0, le=1)
    color: float = Field(0.0, ge=0, le=1)  # strength of brightness, contrast and saturation changes
    zoom: tuple[float, float] = (1.0, 1.0)


class TrainConfig(Section):
    """AdamW with linear warm-up and cosine; see loop.py."""

    batch_size: int = Field(8, ge=1)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.1, ge=0, le=1)  # fraction of the steps
    final_lr: float = Field(0.01, ge=0, le=1)  # fraction of `lr` at the end of the cosine
    clip: float = Field(5.0, gt=0)
    ema: float = Field(0.99, ge=0, lt=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    augment: Augmentation = Augmentation()
    sampling: Sampling = Sampling()
