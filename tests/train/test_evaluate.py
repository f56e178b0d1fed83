"""The evaluator of the search and pycocotools give the same twelve numbers."""

import dataclasses

import numpy as np
import pytest

from fastnas.data.coco import read_coco
from fastnas.train.evaluate import METRICS, coco_metrics


def noisy_results(split, seed):
    """Detections that are partly right: jittered truth, duplicates, wrong classes and false alarms; some scores tie."""
    rng = np.random.default_rng(seed)
    ids = [category.id for category in split.classes]
    results = []
    for record in split.records:
        for box, label in zip(record.boxes, record.labels, strict=True):
            for _ in range(rng.integers(0, 3)):
                size = np.array([box[2] - box[0], box[3] - box[1]] * 2)
                x1, y1, x2, y2 = box + rng.normal(0, 0.08, 4) * size
                label_id = ids[label - 1] if rng.random() < 0.85 else ids[rng.integers(len(ids))]
                row = {"image_id": record.image_id, "category_id": label_id, "score": round(float(rng.random()), 2)}
                results.append(row | {"bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]})
        for _ in range(rng.integers(0, 120)):
            x, y, w, h = rng.random(4) * 30
            row = {"image_id": record.image_id, "category_id": ids[rng.integers(len(ids))], "score": float(rng.random())}
            results.append(row | {"bbox": [x, y, w + 1, h + 1]})
    return results


def assert_equal(split, results):
    fast, final = coco_metrics(split, results), coco_metrics(split, results, final=True)
    assert list(fast) == list(final) == list(METRICS)
    assert fast == pytest.approx(final, abs=1e-12)
    return final


@pytest.mark.parametrize("seed", range(4))
def test_all_twelve_numbers_are_equal_on_generated_data(shapes, seed):
    split = read_coco(shapes, "val")
    crowd = [dataclasses.replace(r, crowd=np.arange(len(r.boxes)) % 4 == 3) for r in split.records]
    final = assert_equal(dataclasses.replace(split, records=tuple(crowd)), noisy_results(split, seed))
    assert 0 < final["ap"] < final["ap50"] < 1


def test_all_twelve_numbers_are_equal_on_photographs(bccd):
    split = read_coco(bccd, "val")
    final = assert_equal(split, noisy_results(split, 0))
    assert 0 < final["ap"] < 1


def test_perfect_and_empty_results(shapes):
    split = read_coco(shapes, "val")
    ids = [category.id for category in split.classes]
    perfect = []
    for record in split.records:
        for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels, strict=True):
            row = {"image_id": record.image_id, "category_id": ids[label - 1], "score": 0.9}
            perfect.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    assert coco_metrics(split, perfect)["ap"] == pytest.approx(1.0)
    assert coco_metrics(split, []) == dict.fromkeys(METRICS, 0.0)
