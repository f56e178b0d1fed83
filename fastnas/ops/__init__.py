"""Native operators of detection. Importing this package loads torch and the operators; `import fastnas` does not.

Every function takes tensors of one device; `build_info()` tells what was built, what could be loaded and why not.
"""

from fastnas.ops._library import build_info
from fastnas.ops.nms import batched_nms, nms
from fastnas.ops.roi_align import MultiscaleRoIAlign, RoIAlign, multiscale_roi_align, roi_align
from fastnas.ops.weighted_fusion import WeightedFusion, weighted_fusion

__all__ = [
    "MultiscaleRoIAlign",
    "RoIAlign",
    "WeightedFusion",
    "batched_nms",
    "build_info",
    "multiscale_roi_align",
    "nms",
    "roi_align",
    "weighted_fusion",
]
