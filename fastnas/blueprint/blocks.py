"""All kinds of specs in one namespace (`blocks.Residual`, ...). A new part's specs are added here, and to the builders of
`fastnas.models` and `fastnas.models.onnx`."""

from fastnas.blueprint.parts.bifpn import CoarserLevel, FusionNode
from fastnas.blueprint.parts.c4 import RegionPredictor
from fastnas.blueprint.parts.cascade import Refine
from fastnas.blueprint.parts.effdet import AnchorDetections, HeadTower
from fastnas.blueprint.parts.efficientnet import MobileBlock, SiluStem
from fastnas.blueprint.parts.fpn import ConvLevel, FpnLevel, MaxPoolLevel
from fastnas.blueprint.parts.guided import GuidedHead, GuidedProposals
from fastnas.blueprint.parts.mobilenet import InvertedResidual, Relu6Stem
from fastnas.blueprint.parts.parallel import Connector
from fastnas.blueprint.parts.rcnn import BoxHead, Detections, RoiPool, Weights
from fastnas.blueprint.parts.retinanet import ConvTower, RetinaDetections
from fastnas.blueprint.parts.rpn import Proposals, RpnHead
from fastnas.blueprint.parts.serial import Residual, Stem
from fastnas.blueprint.spec import Shape, Shapes, Spec, half, norm_groups

Proposer = Proposals | GuidedProposals
PROPOSERS = Proposals, GuidedProposals
AnchorHead = AnchorDetections | RetinaDetections
ANCHOR_HEADS = AnchorDetections, RetinaDetections
SUPPRESSIONS = Detections, *ANCHOR_HEADS  # what ends a detector

__all__ = [
    "ANCHOR_HEADS",
    "AnchorDetections",
    "AnchorHead",
    "BoxHead",
    "CoarserLevel",
    "Connector",
    "ConvLevel",
    "ConvTower",
    "Detections",
    "FpnLevel",
    "FusionNode",
    "GuidedHead",
    "GuidedProposals",
    "HeadTower",
    "InvertedResidual",
    "MaxPoolLevel",
    "MobileBlock",
    "PROPOSERS",
    "Proposals",
    "Proposer",
    "Refine",
    "RegionPredictor",
    "Relu6Stem",
    "Residual",
    "RetinaDetections",
    "RoiPool",
    "RpnHead",
    "SUPPRESSIONS",
    "Shape",
    "Shapes",
    "SiluStem",
    "Spec",
    "Stem",
    "Weights",
    "half",
    "norm_groups",
]
