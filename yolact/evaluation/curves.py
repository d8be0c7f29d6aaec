"""Precision-recall curves of a finished COCO evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curves:
    """Interpolated precision of boxes or masks over recall, both 0..1, of objects of all sizes.

    Every curve has one precision for each of `recall`; beyond the recall that was reached it is 0. The mean
    of a curve is the AP of `Metrics` at that threshold.

    Attributes:
        recall: The 101 recalls that COCO looks at: 0, 0.01 ... 1.
        mean: Mean over the classes that have annotations, for IoU `"0.50"`, `"0.75"` and `"0.50:0.95"` (also
            the mean over thresholds). None where no class has any.
        by_class: At IoU 0.50 of each category of the annotation file, by name; None for one without
            annotations.
    """

    recall: list[float]
    mean: dict[str, list[float] | None]
    by_class: dict[str, list[float] | None]


def curves_of(precision: np.ndarray, recall: np.ndarray, names: Sequence[str]) -> Curves:
    """The curves in the arrays of `COCOeval`.

    Args:
        precision: (10, R, C) for IoU .50, .55 ... .95, recalls and classes; -1 where a class has no
            annotations.
        recall: (R,) the recalls.
        names: The C classes.
    """
    defined = precision[0, 0] > -1  # (C,)

    def mean(rows: np.ndarray) -> list[float] | None:  # (thresholds, R, C)
        return rows[..., defined].mean(axis=(0, 2)).tolist() if defined.any() else None

    return Curves(
        recall=recall.tolist(),
        mean={"0.50": mean(precision[:1]), "0.75": mean(precision[5:6]), "0.50:0.95": mean(precision)},
        by_class={name: precision[0, :, i].tolist() if defined[i] else None for i, name in enumerate(names)},
    )
