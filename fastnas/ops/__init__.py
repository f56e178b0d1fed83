"""Native operators of detection. Importing this package loads torch and the operators; `import fastnas` does not.

Every function takes tensors of one device; `build_info()` tells what was built, what could be loaded and why not.
"""

from fastnas.ops._library import build_info
from fastnas.ops.group_norm import GroupNormAct, group_norm_act
from fastnas.ops.nms import batched_nms, nms
from fastnas.ops.roi_align import multiscale_roi_align, roi_align

__all__ = [
    "GroupNormAct",
    "batched_nms",
    "build_info",
    "group_norm_act",
    "multiscale_roi_align",
    "nms",
    "roi_align",
]
