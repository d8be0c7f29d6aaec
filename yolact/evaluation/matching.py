"""Pairing the instances of two lists: detections with objects, or one engine's detections with another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask


def match_instances(similarity: np.ndarray, best_first: bool = False) -> list[tuple[int, int]]:
    """Pair rows with columns greedily, each at most once.

    Args:
        similarity: (n, m) float; -inf where two must not be paired. Of equal values the first one counts.
        best_first: Take the most similar pair of all first. Otherwise the rows choose in their order, as
            detections do in COCO's evaluation: the best score first.

    Returns:
        (row, column) of each pair, by row.
    """
    n, m = similarity.shape
    values, rows = similarity.ravel(), np.repeat(np.arange(n), m)
    order = np.lexsort((-values,) if best_first else (-values, rows))  # the last key decides first; stable
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in (divmod(flat, m) for flat in order[np.isfinite(values[order])].tolist()):
        if row not in partner and column not in taken:
            partner[row] = column
            taken.add(column)
    return sorted(partner.items())


class Instances(NamedTuple):
    """The instances of one image: classes (n,), boxes (n, 4) as x, y, width and height, and n COCO RLEs."""

    classes: np.ndarray
    boxes: np.ndarray
    rles: Sequence[Any]


class Pair(NamedTuple):
    """An instance of the first list with its match in the second, and the IoU of both."""

    row: int
    column: int
    box_iou: float
    mask_iou: float


def pair_instances(first: Instances, second: Instances, mask_iou: float) -> list[Pair]:
    """Pair instances of one class whose masks have at least this IoU; `first` is in the order of choosing."""
    boxes, masks = pairwise_iou(first.boxes, second.boxes), pairwise_iou(first.rles, second.rles)
    same = (first.classes[:, None] == second.classes[None]) & (masks >= mask_iou)
    pairs = match_instances(np.where(same, masks + boxes, -np.inf))
    return [Pair(row, column, float(boxes[row, column]), float(masks[row, column])) for row, column in pairs]


def pairwise_iou(
    first: Sequence[Any] | np.ndarray, second: Sequence[Any] | np.ndarray, crowd: bool = False
) -> np.ndarray:
    """IoU of each of n instances with each of m.

    Args:
        first: n masks as COCO RLEs, or n boxes as [x, y, width, height].
        second: m of the same kind.
        crowd: Divide by the area of the first one alone, as COCO does for crowd regions.

    Returns:
        (n, m) float64. Two without any area are the same: 1.
    """
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    iou = np.array(coco_mask.iou(list(first), list(second), [crowd] * len(second)))
    empty = [np.array([_area(item) == 0 for item in side]) for side in (first, second)]
    iou[empty[0][:, None] & empty[1][None]] = 1
    return iou


def _area(item: Any) -> float:
    return float(coco_mask.area(item)) if isinstance(item, dict) else float(item[2] * item[3])
