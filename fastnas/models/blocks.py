"""Specs -> modules: one nn.Module for every kind of block that has weights or maps features. A new kind registers in MODULES.

A module takes and returns tensors in the order of its block's inputs and outputs; where some weights belong to one use each
(`Spec.per_use`), the index of the use comes last. Feature maps are NCHW, best in channels-last. A module with weights has
`initialize()`, which gives it fresh ones.
"""

import torch
from torch import nn

from fastnas.blueprint import blocks as spec
from fastnas.blueprint import operators as layer
from fastnas.models.parts import (
    bifpn,
    effdet,
    efficientnet,
    fpn,
    guided,
    mobilenet,
    operators,
    parallel,
    rcnn,
    retinanet,
    rpn,
    serial,
)

MODULES: dict[type[spec.Spec], type[nn.Module]] = {
    spec.Stem: serial.Stem,
    spec.Residual: serial.Residual,
    spec.Connector: parallel.Connector,
    spec.SiluStem: efficientnet.SiluStem,
    spec.MobileBlock: efficientnet.MobileBlock,
    spec.Relu6Stem: mobilenet.Relu6Stem,
    spec.InvertedResidual: mobilenet.InvertedResidual,
    spec.FpnLevel: fpn.FpnLevel,
    spec.MaxPoolLevel: fpn.MaxPoolLevel,
    spec.ConvLevel: fpn.ConvLevel,
    spec.CoarserLevel: bifpn.CoarserLevel,
    spec.FusionNode: bifpn.FusionNode,
    spec.RpnHead: rpn.RpnHead,
    spec.GuidedHead: guided.GuidedHead,
    spec.RoiPool: rcnn.RoiPool,
    spec.BoxHead: rcnn.BoxHead,
    spec.RegionPredictor: rcnn.RegionPredictor,
    spec.Refine: rcnn.Refine,
    spec.ConvTower: retinanet.ConvTower,
    spec.HeadTower: effdet.HeadTower,
    layer.Conv: operators.Conv,
    layer.Linear: operators.Linear,
    layer.Pass: operators.Pass,
}


def build_block(s: spec.Spec) -> nn.Module | None:
    """The initialized module of a spec, or None for a block that has neither weights nor features (boxes in, boxes out)."""
    if type(s) not in MODULES:
        return None
    module = MODULES[type(s)](s)
    first = next(module.parameters(), None)
    if first is not None and not first.is_meta:
        with torch.no_grad():
            module.initialize()
    return module
