"""Which instances of two results match."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from yolact_bench.measure.agreement import agreement


def test_agreement_counts_by_class_and_overlap() -> None:
    def rle(columns: int) -> dict:
        mask = np.zeros((10, 10), np.uint8, order="F")
        mask[:, :columns] = 1
        return coco_mask.encode(mask)

    first = {"classes": [0, 1, 2, 4, 5], "rles": [rle(10), rle(10), rle(10), rle(0), rle(0)]}
    second = {"classes": [0, 1, 3, 4, 5], "rles": [rle(10), rle(5), rle(10), rle(0), rle(1)]}
    assert agreement(first, second) == (2, 1.0)  # the first, and the two empty ones
    assert agreement({"classes": [], "rles": []}, second) == (0, 0.0)
