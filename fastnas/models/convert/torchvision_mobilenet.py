"""torchvision's MobileNetV2 for classification."""

from fastnas.blueprint import PRESETS, Blueprint, MobileNetV2, Network, expand
from fastnas.blueprint import blocks as spec
from fastnas.blueprint.wiring import Block
from fastnas.errors import InputError
from fastnas.models.convert.format import Format, Source, split

WIDTHS = ("1", "1.4", "1.3", "0.75", "0.5", "0.35", "0.25", "0.1")  # of published weights and torchvision's documentation


def names(network: Network, block: Block, key: str) -> list[str]:
    """See `Format.names`."""
    layer, leaf = split(key)
    match block.spec:
        case spec.Relu6Stem():
            return [f"features.0.{0 if layer == 'conv1' else 1}.{leaf}"]
        case spec.InvertedResidual():
            blocks = [other.name for other in network.blocks if isinstance(other.spec, spec.InvertedResidual)]
            first = 0 if block.spec.expansion != 1 else -1
            own = {
                "conv1": f"{first}.0", "norm1": f"{first}.1", "conv2": f"{first + 1}.0", "norm2": f"{first + 1}.1",
                "conv3": f"{first + 2}", "norm3": f"{first + 3}",
            }[layer]  # fmt: skip
            return [f"features.{blocks.index(block.name) + 1}.conv.{own}.{leaf}"]
    return []


def mobilenet_blueprint(source: Source) -> Blueprint:
    """The backbone under the neck and heads of `fasterrcnn-r50-fpn`, of which the checkpoint holds nothing."""
    for width in WIDTHS:
        blueprint = PRESETS["fasterrcnn-r50-fpn"].replace(backbone=MobileNetV2(width))
        network = expand(blueprint)
        if all(_fits(source, network, block) for block in network.blocks if block.name.startswith("backbone.")):
            return blueprint
    raise InputError(f"a MobileNetV2 with these channels has none of the widths {', '.join(WIDTHS)}: name its blueprint")


def _fits(source: Source, network: Network, block: Block) -> bool:
    """Whether the first norm of a block has as many channels in the checkpoint."""
    layer = "norm2" if getattr(block.spec, "expansion", 0) == 1 else "norm1"
    (name,) = names(network, block, f"{layer}.weight")
    width = getattr(block.spec, "width", None) or block.spec.channels
    return name in source and len(source[name]) == width


MOBILENET = Format(
    "torchvision MobileNetV2", ("features.0.0.weight", "features.1.conv.0.0.weight", "features.18.0.weight"), names,
    mobilenet_blueprint, lambda source: 1e-5,
)  # fmt: skip
