"""torchvision's detectors with a ResNet body and a feature pyramid: Faster R-CNN and RetinaNet.

Files of before torchvision 0.13 have fewer zeros in their names (`inner_blocks.0.weight`). Its published COCO weights are such
files, and their batch norms have eps 0: torchvision builds their models with `overwrite_eps(model, 0.0)`.
"""

from fastnas.blueprint import Blueprint, Fpn, Network, RetinaHead, RoiHead, Rpn
from fastnas.blueprint import blocks as spec
from fastnas.blueprint.wiring import Block
from fastnas.errors import InputError
from fastnas.models.convert.format import Format, Source, split
from fastnas.models.convert.torchvision_resnet import resnet_names, told_backbone

BODY = "backbone.body."


def names(network: Network, block: Block, key: str) -> list[str]:
    """See `Format.names`."""
    layer, leaf = split(key)
    match block.spec:
        case spec.Stem() | spec.Residual():
            return resnet_names(network, block, key, BODY)
        case spec.FpnLevel():
            (convolution, *norm), index = layer.split("."), _level(network, block)
            kind = "inner" if convolution == "lateral" else "layer"
            inside = (".1",) if norm == ["norm"] else (".0", "")
            return [f"backbone.fpn.{kind}_blocks.{index}{number}.{leaf}" for number in inside]
        case spec.ConvLevel() if layer == "output":
            return [f"backbone.fpn.extra_blocks.{block.name.removeprefix('neck.')}.{leaf}"]
        case spec.ConvTower():
            return _tower(block, layer, leaf)
        case spec.RpnHead():
            return [f"rpn.head.conv{zero}.{leaf}" for zero in (".0.0", "")] if layer == "conv" else [f"rpn.head.{key}"]
        case spec.BoxHead():
            return [f"roi_heads.{'box_head' if layer.startswith('fc') else 'box_predictor'}.{key}"]
    return []


def _level(network: Network, block: Block) -> int:
    """Number of a pyramid level, from the finest, that torchvision gives its convolutions."""
    levels = sorted(int(other.name.removeprefix("neck.p")) for other in network.blocks if isinstance(other.spec, spec.FpnLevel))
    return levels.index(int(block.name.removeprefix("neck.p")))


def _tower(block: Block, layer: str, leaf: str) -> list[str]:
    """Of RetinaNet; its towers have no norms but in the second version, whose group norms lie behind the convolutions."""
    head, predictor = ("classification", "cls_logits") if block.spec.predicts == "classes" else ("regression", "bbox_reg")
    prefix = f"head.{head}_head"
    if layer == "predictor":
        return [f"{prefix}.{predictor}.{leaf}"]
    kind, index, *_ = layer.split(".")
    inside = (".1",) if kind == "norms" else (".0", "")
    return [f"{prefix}.conv.{index}{number}.{leaf}" for number in inside]


def retinanet_blueprint(source: Source) -> Blueprint:
    """The detector at torchvision's input of 800 x 1333, for as many classes as there are: output 0 is none of them."""
    channels, convs = source["head.classification_head.cls_logits.weight"].shape[1], 0
    while any(f"head.classification_head.conv.{convs}{zero}.weight" in source for zero in (".0", "")):
        convs += 1
    classes = len(source["head.classification_head.cls_logits.weight"]) // 9 - 1  # nine anchors
    extra = "conv-c" if len(source["backbone.fpn.extra_blocks.p6.weight"][0]) != channels else "conv-p"
    neck, head = Fpn(channels, levels="3-7", extra=extra), RetinaHead(convs, background="yes")
    return Blueprint((800, 1333), told_backbone(source, BODY), neck, None, head, classes)


def faster_rcnn_blueprint(source: Source) -> Blueprint:
    """The detector at torchvision's input of 800 x 1333, for as many classes as there are."""
    if "roi_heads.box_head.fc6.weight" not in source:
        raise InputError("the checkpoint's box head is not the one of fasterrcnn_resnet50_fpn: name a blueprint (--blueprint)")
    classes = len(source["roi_heads.box_predictor.cls_score.weight"]) - 1
    channels, hidden = len(source["rpn.head.cls_logits.weight"][0]), len(source["roi_heads.box_head.fc6.weight"])
    return Blueprint((800, 1333), told_backbone(source, BODY), Fpn(channels), Rpn(), RoiHead(hidden), classes)


def eps(source: Source) -> float:
    """Of the batch norms of the body."""
    return 0.0 if "backbone.fpn.inner_blocks.0.weight" in source else 1e-5


RETINANET = Format(
    "torchvision RetinaNet",
    (f"{BODY}conv1.weight", "head.classification_head.cls_logits.weight", "backbone.fpn.extra_blocks.p6.weight"),
    names,
    retinanet_blueprint,
    eps,
)


FASTER_RCNN = Format(
    "torchvision Faster R-CNN",
    (f"{BODY}conv1.weight", "rpn.head.cls_logits.weight", "roi_heads.box_predictor.cls_score.weight"),
    names,
    faster_rcnn_blueprint,
    eps,
)
