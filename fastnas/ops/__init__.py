"""Native operators of detection. Importing this package loads torch and the operators; `import fastnas` does not.

Every function takes tensors of one device; `build_info()` tells what was built, what could be loaded and why not.
"""

from fastnas.ops._library import build_info
from fastnas.ops.group_norm import GroupNormAct, group_norm_act
from fastnas.ops.nms import batched_nms, nms
from fastnas.ops.roi_align import multiscale_roi_align, roi_align
from fastnas.ops.standardize_weight import standardize_weight, standardize_weights
from fastnas.ops.standardized import standardized
from fastnas.ops.ws_conv import WSConv2d, WSConvGN, fold_standardized, ws_conv_gn

__all__ = [
    "GroupNormAct",
    "WSConv2d",
    "WSConvGN",
    "batched_nms",
    "build_info",
    "fold_standardized",
    "group_norm_act",
    "multiscale_roi_align",
    "nms",
    "roi_align",
    "standardize_weight",
    "standardize_weights",
    "standardized",
    "ws_conv_gn",
]
