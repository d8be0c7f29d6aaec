"""`Detections`, the output of every engine, and its check."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from yolact_runtime.errors import YolactError
from yolact_runtime.metadata import Metadata


class Detections(NamedTuple):
    """Output of an engine for a batch of N images, zero-padded past `count`, best score first.

    Attributes:
        count: (N,) int32, rows in use.
        boxes: (N, K, 4) float32, x1 y1 x2 y2 relative to the image; may leave 0..1.
        scores: (N, K) float32, 0..1, descending.
        classes: (N, K) int32, 0-based, no background.
        coefficients: (N, K, M) float32.
        prototypes: (N, Hp, Wp, M) float32.
        mask_scores: (N, K) float32; equal to `scores` unless masks are re-scored.
    """

    count: np.ndarray  # type: ignore[assignment]
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    coefficients: np.ndarray
    prototypes: np.ndarray
    mask_scores: np.ndarray


def check_detections(found: Detections, n: int, meta: Metadata) -> None:
    """Raise a YolactError if an engine's detections of n images do not match its metadata."""
    k, m = meta.max_detections, found.prototypes.shape[-1]
    expected = {
        "count": ((n,), "iu"), "boxes": ((n, k, 4), "f"), "scores": ((n, k), "f"),
        "classes": ((n, k), "iu"), "coefficients": ((n, k, m), "f"),
        "prototypes": ((n, *found.prototypes.shape[1:3], m), "f"), "mask_scores": ((n, k), "f"),
    }  # fmt: skip
    for name, (shape, kinds) in expected.items():
        actual = getattr(found, name)
        if actual.shape != shape:
            raise YolactError(
                f"the engine returned {name} of shape {actual.shape}, not {shape}; export it again"
            )
        if actual.dtype.kind not in kinds:
            needed = "whole numbers" if kinds == "iu" else "floating point"
            raise YolactError(f"the engine returned {name} as {actual.dtype}, not {needed}; export it again")
    counts = found[0].tolist()  # `found.count` is a method of tuples to type checkers
    if min(counts) < 0 or max(counts) > k:
        raise YolactError(f"the engine returned count {counts}, outside 0..{k}; export it again")
    known = len(meta.class_names)
    low, high = found.classes.min(), found.classes.max()
    if low < 0 or high >= known:
        raise YolactError(
            f"the engine returned class {low if low < 0 else high}, and its metadata names {known};"
            " export it again"
        )
