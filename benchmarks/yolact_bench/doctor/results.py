"""Compares what an engine finds with stored results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolact.evaluation.matching import Instances, pair_instances
from yolact_bench.doctor.stage import FAILED, OK, Figure, Outcome
from yolact_runtime.errors import counted

# Detections that score less are not compared.
SCORE = 0.3
# A match has the same class and a mask of at least this IoU: less than what is allowed, so that a mask or a
# box that is wrong is named, and not only missed.
LEAST_IOU = 0.3


@dataclass(frozen=True)
class Allowed:
    """What may differ: share of the detections without a match, scores, and least IoU of masks and boxes."""

    unmatched: float
    score: float
    mask_iou: float
    box_iou: float


# Another order of float32 operations; and half precision, or integers.
EXACT = Allowed(0.0, 1e-3, 0.97, 0.97)
REDUCED = Allowed(0.25, 0.25, 0.5, 0.5)


def compare(expected: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], allowed: Allowed) -> Outcome:
    """Compare two lists of COCO results of the same images.

    Args:
        expected: The stored results.
        found: Those of the engine.
        allowed: What may differ.
    """
    rows = total = 0
    scores, masks, boxes = [0.0], [1.0], [1.0]
    extra = 0
    for image in sorted({one["image_id"] for one in (*expected, *found)}):
        sides = [[one for one in side if one["image_id"] == image] for side in (expected, found)]
        pairs = pair_instances(_instances(sides[0]), _instances(sides[1]), LEAST_IOU)
        strong = [pair for pair in pairs if sides[0][pair.row]["score"] >= SCORE]
        total += sum(one["score"] >= SCORE for one in sides[0])
        rows += len(strong)
        scores += [abs(sides[0][pair.row]["score"] - sides[1][pair.column]["score"]) for pair in strong]
        masks += [pair.mask_iou for pair in strong]
        boxes += [pair.box_iou for pair in strong]
        taken = {pair.column for pair in pairs}
        over = SCORE + allowed.score
        extra += sum(one["score"] > over and row not in taken for row, one in enumerate(sides[1]))
    figures: dict[str, Figure] = {
        "detections": total,
        "matched": rows,
        "largest score difference": round(float(np.max(scores)), 6),  # NaN stays NaN
        "smallest mask IoU": round(float(np.min(masks)), 4),
        "smallest box IoU": round(float(np.min(boxes)), 4),
    }
    worst = Allowed(0.0, float(np.max(scores)), float(np.min(masks)), float(np.min(boxes)))
    problem = _problem(total, rows, extra, worst, allowed)
    remedy = "the library computes something else here: attach the report to a bug report" if problem else ""
    return Outcome(FAILED if problem else OK, figures, problem, remedy)


def _problem(total: int, matched: int, extra: int, worst: Allowed, allowed: Allowed) -> str:
    """What differs by more than is allowed, one line; empty if nothing does."""
    if total - matched > allowed.unmatched * total:
        return f"only {matched} of {counted(total, 'stored detection')} are found"
    if extra > allowed.unmatched * total:
        return f"{counted(extra, 'detection')} more than the {total} stored ones"
    if not worst.score <= allowed.score:
        return f"scores differ by {worst.score:.3g} from the stored ones; allowed {allowed.score:g}"
    for name, least, limit in (
        ("mask", worst.mask_iou, allowed.mask_iou),
        ("box", worst.box_iou, allowed.box_iou),
    ):
        if not least >= limit:
            return f"a {name} overlaps its stored one by only {least:.3f}; allowed {limit:g}"
    return ""


def _instances(entries: Sequence[dict[str, Any]]) -> Instances:
    """COCO results of one image, best first."""
    return Instances(
        np.array([one["category_id"] for one in entries]),
        np.array([one["bbox"] for one in entries], np.float64).reshape(-1, 4),
        [one["segmentation"] for one in entries],
    )
