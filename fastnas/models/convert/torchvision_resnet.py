"""ResNet and ResNeXt 32x4d for classification as torchvision and timm name them; torchvision's detectors hold one as their body."""

from fastnas.blueprint import Blueprint, BlueprintError, Fpn, Network, RoiHead, Rpn, SerialBackbone
from fastnas.blueprint import blocks as spec
from fastnas.blueprint.wiring import Block
from fastnas.errors import InputError
from fastnas.models.convert.format import Format, Source, count, place, split

STAGES = 4


def resnet_names(network: Network, block: Block, key: str, prefix: str = "") -> list[str]:
    """See `Format.names`. prefix: put before every name."""
    layer, leaf = split(key)
    layer = {"downsample.conv": "downsample.0", "downsample.norm": "downsample.1"}.get(layer, layer.replace("norm", "bn"))
    match block.spec:
        case spec.Stem():
            return [f"{prefix}{layer}.{leaf}"]
        case spec.Residual() if at := place(block):
            return [f"{prefix}layer{at[0] + 1}.{at[1]}.{layer}.{leaf}"]
    return []


def told_backbone(source: Source, prefix: str = "") -> SerialBackbone:
    """The backbone whose blocks these are. Raises InputError: a ResNet that has no code."""
    blocks = [count(source, f"{prefix}layer{stage}.{{}}.conv1.weight") for stage in range(1, STAGES + 1)]
    first = f"{prefix}layer1.0"
    rows, columns = source[f"{first}.conv2.weight"].shape[:2]
    groups = rows // columns
    kind = "basic" if f"{first}.conv3.weight" not in source else {1: "bottleneck", 32: "resnext32x4d"}.get(groups)
    if kind is None or not all(blocks):
        raise InputError(f"a ResNet with {groups} groups and stages of {blocks} blocks is none that fastnas builds")
    code = "-".join(["1" * blocks[0], *("2" + "1" * (number - 1) for number in blocks[1:])])
    try:
        return SerialBackbone(kind, code, len(source[f"{prefix}conv1.weight"]))
    except BlueprintError as error:
        raise InputError(f"the checkpoint's backbone {kind}:{code} is none that fastnas builds: {error}") from None


def resnet_blueprint(source: Source) -> Blueprint:
    """The backbone under the neck and heads of `fasterrcnn-r50-fpn`, of which the checkpoint holds nothing."""
    return Blueprint((800, 1333), told_backbone(source), Fpn(), Rpn(), RoiHead(), classes=90)


RESNET = Format(
    "torchvision or timm ResNet",
    ("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight"),
    resnet_names,
    resnet_blueprint,
    lambda source: 1e-5,
)
