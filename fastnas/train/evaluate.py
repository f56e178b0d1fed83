"""COCO AP of a detector: faster-coco-eval inside the search (15 times faster), pycocotools for final numbers.

Both implement the same protocol (AP over IoU 0.50:0.95, 100 detections an image); a test proves all twelve numbers equal.
"""

import contextlib
import io
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastnas.data.coco import CocoSplit, as_coco_dict
from fastnas.data.dataset import DetectionData
from fastnas.models.detector import Detector
from fastnas.models.fold import folded
from fastnas.models.pixels import scale_and_shift
from fastnas.train.precision import autocast, computed_in

METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")


def normalize(images: Tensor) -> Tensor:
    """uint8 images (N, 3, H, W) -> float32, zero mean and unit variance by ImageNet's statistics, channels-last."""
    scale, shift = map(torch.from_numpy, scale_and_shift())
    return torch.addcmul(shift, images.float(), scale).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def detect(detector: Detector, data: DetectionData, batch_size: int = 8, precision: str = "auto") -> list[dict]:
    """Detections of a whole data set in COCO's result form: boxes xywh in pixels of the original images.

    Computed by a folded copy; the detector stays as it is.
    """
    deployed = folded(detector, computed_in(precision))

    def find(images: Tensor) -> list[dict[str, Tensor]]:
        with autocast(precision):
            return deployed(normalize(images))

    return collect(find, data, [category.id for category in data.split.classes], batch_size)


def collect(
    find: Callable[[Tensor], list[dict[str, Tensor]]], data: DetectionData, class_ids: Sequence[int | None], batch_size: int = 8
) -> list[dict]:
    """As `detect`, of whatever finds boxes, scores and labels on uint8 images (N, 3, H, W).

    class_ids: category of label k at k - 1; detections of labels without one are left out.
    """
    results = []
    for batch in data.batches(batch_size):
        for image_id, scale, detections in zip(batch.image_ids, batch.scales, find(batch.images), strict=True):
            boxes = detections["boxes"] / torch.cat([scale, scale])
            boxes[:, 2:] -= boxes[:, :2]
            rows = zip(boxes.tolist(), detections["scores"].tolist(), detections["labels"].tolist(), strict=True)
            results += [
                {"image_id": image_id, "category_id": class_ids[label - 1], "bbox": box, "score": score}
                for box, score, label in rows
                if class_ids[label - 1] is not None
            ]
    return results


def coco_metrics(split: CocoSplit, results: list[dict], final: bool = False) -> dict[str, float]:
    """COCO's twelve numbers (0 to 1, -1 where a size class has no box). final: computed by pycocotools itself."""
    if not results:
        return dict.fromkeys(METRICS, 0.0)
    if final:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluator
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluator
    with contextlib.redirect_stdout(io.StringIO()):  # both report on stdout, which belongs to results
        truth = COCO()
        truth.dataset = as_coco_dict(split)
        truth.createIndex()
        evaluator = Evaluator(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(METRICS, map(float, evaluator.stats[:12]), strict=True))
