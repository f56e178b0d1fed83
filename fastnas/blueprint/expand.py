"""Blueprint -> blocks: the one source of truth that is counted, built, turned into ONNX and priced."""

from fastnas.blueprint.blueprint import Blueprint
from fastnas.blueprint.wiring import Network, Wiring


def expand(blueprint: Blueprint) -> Network:
    """All blocks of a blueprint with shapes at batch 1. Pure arithmetic, well under a millisecond for most networks."""
    wiring = Wiring((1, 3, *blueprint.input))
    backbone, rpn = blueprint.backbone, blueprint.rpn
    last = min(blueprint.neck.levels_over(backbone.maps)[-1], backbone.maps[-1])
    pyramid = blueprint.neck.wire(wiring, backbone.wire(wiring, last))
    boxes = rpn.wire(wiring, pyramid) if rpn else None
    blueprint.head.wire(wiring, pyramid, backbone, blueprint.classes, boxes)
    return wiring.network(blueprint)
