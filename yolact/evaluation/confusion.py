"""The confusion matrix: which classes are detected as which others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolact.evaluation.matching import match_instances, pairwise_iou
from yolact_runtime.errors import UsageError

IOU_THRESHOLD = 0.5
SCORE_THRESHOLD = 0.3
MOST_CLASSES = 5000  # the square of it is kept


@dataclass(frozen=True)
class Confusion:
    """How often objects of one class were detected as another; `confusion_matrix` says what is counted.

    Attributes:
        kind: What was compared, `"mask"` or `"box"`.
        iou_threshold: The lowest IoU of an object and its detection.
        score_threshold: The lowest score of a detection that counts.
        classes: The C categories of the annotation file.
        counts: (C + 1, C + 1): row, the true class; column, the detected one. The last column counts missed
            objects, the last row detections without an object; their corner is 0.
    """

    kind: str
    iou_threshold: float
    score_threshold: float
    classes: list[str]
    counts: list[list[int]]


def confusion_matrix(
    annotations: Iterable[dict[str, Any]],
    predictions: Iterable[dict[str, Any]],
    image_ids: Iterable[int],
    names: dict[int, str],
    *,
    kind: str = "mask",
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
) -> Confusion:
    """Count pairs of objects and detections, regardless of their classes.

    In each image, detections with at least `score_threshold` are matched in the order of their scores: each
    with the free object that it overlaps most, if their IoU is at least `iou_threshold` (of equal IoU, with
    the first in the file). An object is detected once; a second detection of it, of any class, has no object.
    Detections without an object do not count if at least `iou_threshold` of their area lies in a crowd region
    of their class, as in COCO. Crowd regions are never missed.

    Args:
        annotations: As in `GroundTruth`; with segmentations for masks.
        predictions: COCO result entries; with RLE for masks.
        image_ids: The images that count.
        names: Names of the categories by id, in the order of the matrix.
        kind: `"mask"` or `"box"`.
        score_threshold: 0..1.
        iou_threshold: Above 0, up to 1.

    Raises:
        UsageError: `score_threshold` is out of range, or there are too many classes.
    """
    check_score_threshold(score_threshold)
    if len(names) > MOST_CLASSES:
        raise UsageError(f"a confusion matrix of {len(names):,} classes; allowed: {MOST_CLASSES:,}")
    index = {number: i for i, number in enumerate(names)}
    counts = np.zeros((len(names) + 1, len(names) + 1), np.int64)
    strong = (entry for entry in predictions if entry["score"] >= score_threshold)
    truth, found = _by_image(annotations), _by_image(strong)
    for image in image_ids:
        _count(counts, truth[image], found[image], index, kind, iou_threshold)
    return Confusion(kind, iou_threshold, score_threshold, list(names.values()), counts.tolist())


def check_score_threshold(value: float) -> None:
    """Raise a `UsageError` if `value` is not in 0..1."""
    if not 0 <= value <= 1:
        raise UsageError(f"the score threshold of the confusion matrix is {value}; it must be 0 to 1")


def _by_image(entries: Iterable[dict[str, Any]]) -> defaultdict[int, list[dict[str, Any]]]:
    images = defaultdict(list)
    for entry in entries:
        images[entry["image_id"]].append(entry)
    return images


def _count(
    counts: np.ndarray,
    truth: Sequence[dict[str, Any]],
    found: Sequence[dict[str, Any]],
    index: dict[int, int],
    kind: str,
    iou_threshold: float,
) -> None:
    """Add the pairs of one image to `counts`."""
    nothing = len(counts) - 1
    objects = [entry for entry in truth if not entry["iscrowd"]]
    crowds = [entry for entry in truth if entry["iscrowd"]]
    ranked = sorted(found, key=lambda entry: -entry["score"])
    iou = _overlap(ranked, objects, kind)  # (detections, objects)
    inside = _overlap(ranked, crowds, kind, crowd=True)  # (detections, crowds)
    pairs = dict(match_instances(np.where((iou >= iou_threshold) & (iou > 0), iou, -np.inf)))
    for row, entry in enumerate(ranked):
        label = index[entry["category_id"]]
        if row in pairs:
            counts[index[objects[pairs[row]]["category_id"]], label] += 1
        elif not any(
            share >= iou_threshold and crowd["category_id"] == entry["category_id"]
            for share, crowd in zip(inside[row], crowds, strict=True)
        ):
            counts[nothing, label] += 1
    for column, entry in enumerate(objects):
        counts[index[entry["category_id"]], nothing] += int(column not in pairs.values())


def _overlap(
    found: Sequence[dict[str, Any]], truth: Sequence[dict[str, Any]], kind: str, crowd: bool = False
) -> np.ndarray:
    """(found, truth) IoU; for crowds the share of the found one's area instead."""
    key = "segmentation" if kind == "mask" else "bbox"
    return pairwise_iou([entry[key] for entry in found], [entry[key] for entry in truth], crowd)
