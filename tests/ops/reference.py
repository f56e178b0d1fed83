"""The operators in float64 and plain Python loops, written to be read, not to be fast."""

import math

import torch
from torch import Tensor


def box_iou(a: list[float], b: list[float]) -> float:
    """Intersection over union of (x1, y1, x2, y2); NaN when both are empty, as 0/0 is."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    union = area_a + area_b - width * height
    return width * height / union if union != 0 else math.nan


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> list[int]:
    coordinates = boxes.double().tolist()
    by_score = sorted(range(len(coordinates)), key=lambda i: -scores[i].item())  # sorted() is stable: ties by index
    kept: list[int] = []
    for i in by_score:
        if not any(box_iou(coordinates[k], coordinates[i]) > iou_threshold for k in kept):
            kept.append(i)
    return kept


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> list[int]:
    kept: list[int] = []
    for value in idxs.unique():
        members = torch.where(idxs == value)[0]
        kept += members[nms(boxes[members], scores[members], iou_threshold)].tolist()
    return sorted(kept, key=lambda i: (-scores[i].item(), i))


def soft_nms(
    boxes: Tensor, scores: Tensor, method: str, iou_threshold: float, sigma: float, score_threshold: float,
    max_output: int | None, idxs: Tensor | None,
) -> tuple[list[int], list[float]]:  # fmt: skip
    """Bodla et al. 2017, section 3, with the conventions that fastnas.ops.soft_nms documents."""
    coordinates, current = boxes.double().tolist(), scores.double().tolist()
    classes = [0] * len(current) if idxs is None else idxs.tolist()
    in_play = [i for i, score in enumerate(current) if score > score_threshold]
    indices: list[int] = []
    rescored: list[float] = []
    while in_play and (max_output is None or len(indices) < max_output):
        best = max(in_play, key=lambda i: current[i])  # the first of equals, and in_play ascends
        indices.append(best)
        rescored.append(current[best])
        in_play.remove(best)
        for i in in_play:
            overlap = box_iou(coordinates[best], coordinates[i]) if classes[i] == classes[best] else 0.0
            if method == "linear" and overlap > iou_threshold:
                current[i] *= 1 - overlap
            if method == "gaussian" and overlap > 0:
                current[i] *= math.exp(-(overlap**2) / sigma)
        in_play = [i for i in in_play if current[i] > score_threshold]
    return indices, rescored


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """[C] sample of image [C, H, W] between cells; nothing further than one cell outside."""
    _, height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros_like(image[:, 0, 0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return (
        image[:, top, left] * (1 - dy) * (1 - dx)
        + image[:, top, right] * (1 - dy) * dx
        + image[:, bottom, left] * dy * (1 - dx)
        + image[:, bottom, right] * dy * dx
    )


def roi_align(
    features: Tensor, boxes: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """[K, C, *size] from features [N, C, H, W] and boxes [K, 5]; differentiable by autograd."""
    results = [torch.zeros(0, features.shape[1], *size, dtype=features.dtype)]
    for image, *corners in boxes.double().tolist():
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0.0) for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_height, bin_width = height / size[0], width / size[1]
        rows = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_height)
        columns = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_width)
        bins = []
        for row in range(size[0]):
            for column in range(size[1]):
                samples = [torch.zeros_like(features[0, :, 0, 0])]
                for i in range(rows):
                    for j in range(columns):
                        y = y1 + (row + (i + 0.5) / rows) * bin_height
                        x = x1 + (column + (j + 0.5) / columns) * bin_width
                        samples.append(bilinear(features[int(image)], y, x))
                bins.append(torch.stack(samples).sum(0) / max(rows * columns, 1))
        results.append(torch.stack(bins, dim=1).reshape(1, features.shape[1], *size))
    return torch.cat(results)


def level_of(box: list[float], canonical_size: int, canonical_level: int, levels: list[int]) -> int:
    """Feature Pyramid Networks, equation 1; an index into `levels`, which are log2 of the strides."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    if area <= 0:
        return 0
    level = math.floor(canonical_level + math.log2(math.sqrt(area) / canonical_size) + 1e-6)
    return min(max(level, levels[0]), levels[-1]) - levels[0]


def multiscale_roi_align(
    features: list[Tensor], boxes: Tensor, size: int, strides: list[int], sampling_ratio: int = 2, aligned: bool = False
) -> Tensor:
    levels = [int(math.log2(stride)) for stride in strides]
    results = [torch.zeros(0, features[0].shape[1], size, size, dtype=features[0].dtype)]
    for box in boxes:
        level = level_of(box[1:].double().tolist(), 224, 4, levels)
        results.append(
            roi_align(features[level], box[None], (size, size), 1 / strides[level], sampling_ratio, aligned)
        )
    return torch.cat(results)
