"""Native operators of detection. Importing this package loads torch and the operators; `import fastnas` does not.

Every function takes tensors of one device; `build_info()` tells what was built, what could be loaded and why not.
"""

from fastnas.ops._library import build_info
from fastnas.ops.batch_norm import BatchNormAct, batch_norm_act
from fastnas.ops.depthwise_conv import DepthwiseConv2d, depthwise_conv2d
from fastnas.ops.group_norm import GroupNormAct, group_norm_act
from fastnas.ops.nms import batched_nms, nms, nms_padded
from fastnas.ops.roi_align import MultiscaleRoIAlign, RoIAlign, multiscale_roi_align, roi_align
from fastnas.ops.soft_nms import soft_nms
from fastnas.ops.standardize_weight import standardize_weight, standardize_weights
from fastnas.ops.standardized import standardized
from fastnas.ops.weighted_fusion import WeightedFusion, weighted_fusion
from fastnas.ops.ws_conv import WSConv2d, WSConvGN, fold_standardized, ws_conv_gn

__all__ = [
    "BatchNormAct",
    "DepthwiseConv2d",
    "GroupNormAct",
    "MultiscaleRoIAlign",
    "RoIAlign",
    "WSConv2d",
    "WSConvGN",
    "WeightedFusion",
    "batch_norm_act",
    "batched_nms",
    "build_info",
    "depthwise_conv2d",
    "fold_standardized",
    "group_norm_act",
    "multiscale_roi_align",
    "nms",
    "nms_padded",
    "roi_align",
    "soft_nms",
    "standardize_weight",
    "standardize_weights",
    "standardized",
    "weighted_fusion",
    "ws_conv_gn",
]
