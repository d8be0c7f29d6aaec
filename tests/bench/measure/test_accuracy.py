"""Which instances of two candidates match."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from yolact_bench.measure.accuracy import agree


def test_agreement_counts_by_class_and_overlap(make_candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    def finds(classes: list[int], columns: list[int]):
        entries = []
        for category, count in zip(classes, columns, strict=True):
            mask = np.zeros((10, 10), np.uint8, order="F")
            mask[:, :count] = 1
            entries.append({"category_id": category, "segmentation": coco_mask.encode(mask)})
        candidate = make_candidate("any")
        monkeypatch.setattr(candidate, "to_coco", lambda path, image_id: entries)
        return candidate

    first = finds([0, 1, 2, 4, 5], [10, 10, 10, 0, 0])
    second = finds([0, 1, 3, 4, 5], [10, 5, 10, 0, 1])
    # The first, and the two empty ones.
    expected = {"images": 1, "instances": 5, "matched": 2, "mask_iou": 1.0}
    assert agree(first, second, [Path("a")]) == expected
    expected = {"images": 1, "instances": 0, "matched": 0, "mask_iou": 0.0}
    assert agree(finds([], []), second, [Path("a")]) == expected
