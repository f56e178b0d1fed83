"""torchvision's EfficientNet B0 to B7 for classification. It pads symmetrically; batch norm's eps is 1e-5 up to B4, then 1e-3."""

from dataclasses import replace

from fastnas.blueprint import PRESETS, Blueprint, EfficientNet, Network, expand
from fastnas.blueprint import blocks as spec
from fastnas.blueprint.wiring import Block
from fastnas.errors import InputError
from fastnas.models.convert.format import Format, Source, count, place, split

LARGE = ("b5", "b6", "b7")  # with the eps and momentum of TensorFlow's


def names(network: Network, block: Block, key: str) -> list[str]:
    """See `Format.names`."""
    layer, leaf = split(key)
    match block.spec:
        case spec.SiluStem():
            return [f"features.0.{0 if layer == 'conv1' else 1}.{leaf}"]
        case spec.MobileBlock() if at := place(block):
            prefix, first = f"features.{at[0] + 1}.{at[1]}.block", 0 if block.spec.expansion != 1 else -1
            own = {
                "conv1": f"{first}.0", "norm1": f"{first}.1", "conv2": f"{first + 1}.0", "norm2": f"{first + 1}.1",
                "squeeze": f"{first + 2}.fc1", "excite": f"{first + 2}.fc2", "conv3": f"{first + 3}.0", "norm3": f"{first + 3}.1",
            }[layer]  # fmt: skip
            return [f"{prefix}.{own}.{leaf}"]
    return []


def efficientnet_blueprint(source: Source) -> Blueprint:
    """The backbone under the neck and heads of the published EfficientDet, of which the checkpoint holds nothing."""
    variant = _variant(source)
    preset = next(preset for preset in PRESETS.values() if preset.backbone == EfficientNet(variant))
    backbone = EfficientNet(variant, padding="symmetric", norm="tf" if variant in LARGE else "torch")
    return preset.replace(backbone=backbone, neck=replace(preset.neck, padding="symmetric"))


def eps(source: Source) -> float:
    return 1e-3 if _variant(source) in LARGE else 1e-5


def _variant(source: Source) -> str:
    """b0 to b7, by the number of blocks and the channels of the last one. Raises InputError."""
    blocks = sum(count(source, f"features.{stage}.{{}}.block.0.0.weight") for stage in range(1, 8))
    channels = source["features.8.0.weight"].shape[1] if "features.8.0.weight" in source else 0
    for preset in PRESETS.values():
        if isinstance(preset.backbone, EfficientNet):
            specs = [block.spec for block in expand(preset).blocks if isinstance(block.spec, spec.MobileBlock)]
            if (len(specs), specs[-1].out_channels) == (blocks, channels):
                return preset.backbone.variant
    raise InputError(f"an EfficientNet of {blocks} blocks and {channels} channels is none of B0 to B7")


EFFICIENTNET = Format(
    "torchvision EfficientNet", ("features.0.0.weight", "features.1.0.block.1.fc1.weight"), names, efficientnet_blueprint, eps
)
