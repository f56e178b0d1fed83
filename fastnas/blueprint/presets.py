"""Named blueprints, e.g. for `fastnas describe fasterrcnn-r50-fpn`."""

from fastnas.blueprint.blueprint import Blueprint, Fpn, RoiHead, Rpn, SerialBackbone

RESNET18 = "11-21-21-21"
RESNET50 = "111-2111-211111-211"
RESNET101 = f"111-2111-2{'1' * 22}-211"


def _faster_rcnn(block: str, code: str) -> Blueprint:
    """Faster R-CNN as torchvision builds it: COCO's 91 outputs (90 class ids + background), shorter side 800, longer 1333."""
    return Blueprint((800, 1333), SerialBackbone(block, code), Fpn(256), Rpn(1000), RoiHead(1024), classes=90)


PRESETS: dict[str, Blueprint] = {
    "fasterrcnn-r18-fpn": _faster_rcnn("basic", RESNET18),
    "fasterrcnn-r34-fpn": _faster_rcnn("basic", RESNET50),
    "fasterrcnn-r50-fpn": _faster_rcnn("bottleneck", RESNET50),
    "fasterrcnn-r101-fpn": _faster_rcnn("bottleneck", RESNET101),
    "fasterrcnn-x50-fpn": _faster_rcnn("resnext32x4d", RESNET50),
}
