"""How detections are compared with the golden ones, and what may differ."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

TIE = 2e-5  # golden rows whose scores are this close may swap: only rounding orders them
NEAR_WHOLE = 1e-3  # in pixels: closer to a whole number, only rounding decides on which side a coordinate is


def strided(golden: Mapping[str, np.ndarray], stem: str) -> tuple[np.ndarray, int]:
    """The array saved as `stem` or `stem_sN`, and N: which entries of the whole tensor it holds (1: all)."""
    key = next(key for key in golden if re.fullmatch(rf"{stem}(_s\d+)?", key))
    return golden[key], int(key.removeprefix(stem).removeprefix("_s") or 1)


def match_rows(
    golden: Mapping[str, np.ndarray],
    prefix: str,
    classes: np.ndarray,
    scores: np.ndarray,
    boxes: np.ndarray,
    *,
    score_tolerance: float = 5e-4,
    box_tolerance: float = 1e-3,
) -> np.ndarray:
    """Check that detections equal the golden ones, and return the golden row of each.

    Detections must be in the golden order, but rows whose golden scores differ by at most `TIE` may swap.

    Args:
        golden: Holds `<prefix>_class`, `<prefix>_score` and `<prefix>_box`.
        prefix: Of the keys.
        classes: (n,).
        scores: (n,), best first.
        boxes: (n, 4) x1 y1 x2 y2, relative to the image or in pixels, as the golden ones.
        score_tolerance: Absolute.
        box_tolerance: Absolute, in the unit of the boxes.

    Returns:
        (n,) a permutation of 0..n-1.
    """
    expected_classes, expected_scores, expected_boxes = (
        np.asarray(golden[f"{prefix}_{name}"]) for name in ("class", "score", "box")
    )
    n = len(expected_scores)
    assert len(classes) == len(scores) == len(boxes) == n
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=score_tolerance)
    apart = np.abs(np.asarray(boxes, np.float64)[:, None] - expected_boxes[None]).max(axis=2)
    ranked = expected_scores.astype(np.float64)
    apart[np.abs(ranked[:, None] - ranked[None]) > TIE] = np.inf
    apart[np.asarray(classes)[:, None] != expected_classes[None]] = np.inf
    rows = np.arange(n)
    moved = np.flatnonzero(~(apart.diagonal() <= box_tolerance))
    if len(moved):
        rows[moved] = moved[apart[np.ix_(moved, moved)].argmin(axis=1)]
    missing = np.flatnonzero(~(apart[np.arange(n), rows] <= box_tolerance))
    assert not len(missing), f"rows {missing.tolist()} match no golden row of {prefix}"
    assert sorted(rows) == list(range(n)), f"two rows match the same golden row of {prefix}"
    return rows


def assert_pixel_boxes(
    boxes: np.ndarray, golden: Mapping[str, np.ndarray], nms: str, rows: np.ndarray | None = None
) -> None:
    """Check boxes in whole pixels against the golden ones.

    A coordinate may differ by one only where its golden value before rounding down lies within `NEAR_WHOLE`
    of a whole number, and only to the other side of that number.

    Args:
        boxes: (n, 4) int x1 y1 x2 y2.
        golden: Holds `img_hw`, and `<nms>_det_box` (relative) and `<nms>_pp_box` (in pixels), row by row.
        nms: The key of the suppression: fast, trad, cc.
        rows: (n,) the golden row of each box; default 0..n-1.
    """
    height, width = (int(side) for side in golden["img_hw"])
    order = slice(None) if rows is None else rows
    # The original clamps each coordinate on one side only.
    expected = np.clip(np.asarray(golden[f"{nms}_pp_box"])[order], 0, [width, height] * 2)
    corners = np.asarray(golden[f"{nms}_det_box"], np.float64)[order].reshape(-1, 2, 2) * [width, height]
    exact = np.sort(corners, axis=1).reshape(-1, 4)
    assert boxes.shape == expected.shape
    whole = np.round(exact)
    undecided = np.abs(exact - whole) <= NEAR_WHOLE
    for value in (boxes, expected):
        undecided &= (value == whole) | (value == whole - 1)
    wrong = np.argwhere((boxes != expected) & ~undecided)
    assert not len(wrong), "\n".join(
        f"row {i}, coordinate {j}: {boxes[i, j]}, expected {expected[i, j]} (from {exact[i, j]:.5f})"
        for i, j in wrong
    )
