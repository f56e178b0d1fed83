"""Named blueprints, e.g. for `fastnas describe fasterrcnn-r50-fpn`."""

from fastnas.blueprint.blueprint import Blueprint
from fastnas.blueprint.parts import (
    Bifpn,
    C4Head,
    CascadeHead,
    EffdetHead,
    EfficientNet,
    Fpn,
    NoNeck,
    RetinaHead,
    RoiHead,
    Rpn,
    SerialBackbone,
)

RESNET18 = "11-21-21-21"
RESNET50 = "111-2111-211111-211"
RESNET101 = f"111-2111-2{'1' * 22}-211"


def _faster_rcnn(block: str, code: str) -> Blueprint:
    """Faster R-CNN as torchvision builds it: COCO's 91 outputs (90 class ids + background), shorter side 800, longer 1333."""
    return Blueprint((800, 1333), SerialBackbone(block, code), Fpn(256), Rpn(1000), RoiHead(1024), classes=90)


def _faster_rcnn_c4(block: str, code: str) -> Blueprint:
    """Without a pyramid, as detectron2 builds it: COCO's 80 classes, anchors of 32 to 512 pixels on the map of stride 16."""
    rpn = Rpn(1000, scale=2, topk=6000, sizes=5)
    return Blueprint((800, 1333), SerialBackbone(block, code), NoNeck(4), rpn, C4Head(14), classes=80)


def _cascade_rcnn(block: str, code: str) -> Blueprint:
    """Cascade R-CNN as published, with COCO's 80 classes."""
    return Blueprint((800, 1333), SerialBackbone(block, code), Fpn(256), Rpn(1000), CascadeHead(3), classes=80)


def _retinanet(block: str, code: str) -> Blueprint:
    """RetinaNet as torchvision builds it: COCO's 90 class ids and an output that is never used, 300 boxes."""
    neck, head = Fpn(256, levels="3-7", extra="conv-p"), RetinaHead(4, background="yes", detections=300)
    return Blueprint((800, 1333), SerialBackbone(block, code), neck, None, head, classes=90)


def _smnas(size: tuple[int, int], block: str, base: int, code: str, levels: str, head: RoiHead | CascadeHead) -> Blueprint:
    """A detector of SM-NAS's modular stage: trained from scratch, with GroupNorm behind standardised weights.

    The strings for E0, E2 and E3 are reconstructed: their parameters are the published ones to the last digit given. For E1, E4
    and E5 there is none with such parameters.
    """
    backbone = SerialBackbone(block, code, base, "3x3", "gnws")
    return Blueprint(size, backbone, Fpn(128, levels, norm="gnws"), Rpn(1000), head, classes=80)


def _spnet(size: tuple[int, int], block: str, code: str, parallel: str, classes: int) -> Blueprint:
    """SP-NAS's detectors as in its first release: tied copies, a level more than the backbone's five, a cascade of three stages."""
    backbone = SerialBackbone(block, code, stem="3x3", parallel=parallel)
    return Blueprint(size, backbone, Fpn(256), Rpn(1000), CascadeHead(3), classes)


def _efficientdet(side: int, variant: str, channels: int, layers: int, repeats: int, **other) -> Blueprint:
    """EfficientDet as published (table 1 and the authors' code, whose numbers are hand-rounded): COCO's 90 class ids."""
    neck = Bifpn(channels, layers, levels=other.get("levels", "3-7"), method=other.get("method", "fast"))
    head = EffdetHead(repeats, scale=other.get("scale", 4))
    return Blueprint((side, side), EfficientNet(variant), neck, None, head, classes=90)


PRESETS: dict[str, Blueprint] = {
    "fasterrcnn-r18-fpn": _faster_rcnn("basic", RESNET18),
    "fasterrcnn-r34-fpn": _faster_rcnn("basic", RESNET50),
    "fasterrcnn-r50-fpn": _faster_rcnn("bottleneck", RESNET50),
    "fasterrcnn-r101-fpn": _faster_rcnn("bottleneck", RESNET101),
    "fasterrcnn-x50-fpn": _faster_rcnn("resnext32x4d", RESNET50),
    "fasterrcnn-x101-fpn": _faster_rcnn("resnext32x4d", RESNET101),
    "fasterrcnn-r50-c4": _faster_rcnn_c4("bottleneck", RESNET50),
    "cascade-r50-fpn": _cascade_rcnn("bottleneck", RESNET50),
    "retinanet-r50-fpn": _retinanet("bottleneck", RESNET50),
    "smnas-e0": _smnas((512, 512), "basic", 64, "1-21-21-12", "3-6", RoiHead(1024)),
    "smnas-e2": _smnas((600, 800), "basic", 56, "12-11111-211-1112", "2-6", CascadeHead(3)),
    "smnas-e3": _smnas((600, 800), "bottleneck", 56, "211-111111111-2111111-11112111", "2-6", CascadeHead(3)),
    "spnet-ecp": _spnet((1024, 1920), "bottleneck", "11121111-21111-112-1111-1111", "0-0-2-0-3", classes=2),
    "spnet-xb": _spnet((800, 1333), "resnext32x4d", f"1111-21111-2{'1' * 24}-211-1", "1-0-2-1-2", classes=80),
    "efficientdet-d0": _efficientdet(512, "b0", 64, 3, 3),
    "efficientdet-d1": _efficientdet(640, "b1", 88, 4, 3),
    "efficientdet-d2": _efficientdet(768, "b2", 112, 5, 3),
    "efficientdet-d3": _efficientdet(896, "b3", 160, 6, 4),
    "efficientdet-d4": _efficientdet(1024, "b4", 224, 7, 4),
    "efficientdet-d5": _efficientdet(1280, "b5", 288, 7, 4),
    "efficientdet-d6": _efficientdet(1280, "b6", 384, 8, 5, method="sum"),
    "efficientdet-d7": _efficientdet(1536, "b6", 384, 8, 5, method="sum", scale=5),
    "efficientdet-d7x": _efficientdet(1536, "b7", 384, 8, 5, method="sum", levels="3-8"),
}
