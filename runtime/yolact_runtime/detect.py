"""Raw network heads to detections in NumPy: box decoding and fast NMS (YOLACT, Sec. 5)."""

from __future__ import annotations

import logging

import cv2
import numpy as np

from yolact_runtime.detections import Detections
from yolact_runtime.metadata import Metadata

log = logging.getLogger(__name__)

# Scales of the box offsets in training.
CENTRE_VARIANCE = 0.1
SIZE_VARIANCE = 0.2

# Pairs of boxes in memory at a time.
_PAIRS = 1 << 24


def detect(
    loc: np.ndarray,
    logits: np.ndarray,
    coefficients: np.ndarray,
    prototypes: np.ndarray,
    priors: np.ndarray,
    metadata: Metadata,
    classes: frozenset[int] | None = None,
) -> Detections:
    """Detections of a batch.

    Args:
        loc: (N, P, 4) float32 box offsets.
        logits: (N, P, C+1) float32 class logits, background first.
        coefficients: (N, P, M) float32.
        prototypes: (N, Hp, Wp, M) float32.
        priors: (P, 4) float32 cx cy w h, relative.
        metadata: Its thresholds and limits are used.
        classes: 0-based indices of the wanted classes; None for all. The best `max_detections` are those of
            these classes. Other classes never suppress them: fast NMS treats each class on its own.

    Returns:
        Detections, without priors whose box or scores are not finite.
    """
    n, k = len(loc), metadata.max_detections
    out = Detections(
        count=np.zeros(n, np.int32),
        boxes=np.zeros((n, k, 4), np.float32),
        scores=np.zeros((n, k), np.float32),
        classes=np.zeros((n, k), np.int32),
        coefficients=np.zeros((n, k, coefficients.shape[2]), np.float32),
        prototypes=prototypes,
        mask_scores=np.zeros((n, k), np.float32),
    )
    columns = None if classes is None else np.array(sorted(classes), np.int32)
    for i in range(n):
        candidates, scores = select(logits[i], metadata.score_threshold)
        boxes = decode(loc[i, candidates], priors[candidates])
        finite = np.isfinite(boxes).all(axis=1)
        if not finite.all():
            log.warning("dropped %d boxes that are not finite", len(finite) - int(finite.sum()))
            candidates, scores, boxes = candidates[finite], scores[finite], boxes[finite]
        if columns is not None:
            scores = scores[:, columns]
        rows, found = fast_nms(boxes, scores, metadata.iou_threshold, metadata.nms_top_k, k)
        count = len(rows)
        out.count[i] = count
        out.boxes[i, :count] = boxes[rows]
        out.scores[i, :count] = out.mask_scores[i, :count] = scores[rows, found]
        out.classes[i, :count] = found if columns is None else columns[found]
        out.coefficients[i, :count] = coefficients[i, candidates[rows]]
    return out


def select(logits: np.ndarray, score_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Priors whose best foreground score exceeds the threshold.

    Args:
        logits: (P, C+1), background first.
        score_threshold: 0..1, of the softmax.

    Returns:
        Their indices (n,) and foreground scores (n, C) float32.
    """
    # exp(best - background) bounds the best score from above, so most priors need no softmax.
    margin = np.log(max(score_threshold, 1e-30)) - 1e-3
    # Class by class: reducing along the short axis takes three times as long.
    by_class = cv2.transpose(logits)  # (C+1, P)
    likely = np.flatnonzero(by_class[1:].max(axis=0) - by_class[0] >= margin)
    powers = logits[likely].astype(np.float32, copy=False)
    powers -= powers.max(axis=1, keepdims=True)
    np.exp(powers, out=powers)
    powers /= powers.sum(axis=1, keepdims=True)
    scores = powers[:, 1:]
    keep = scores.max(axis=1, initial=0) > score_threshold
    return likely[keep], scores[keep]


def decode(loc: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """(n, 4) offsets and (n, 4) priors (cx, cy, w, h) to (n, 4) x1 y1 x2 y2."""
    with np.errstate(over="ignore", invalid="ignore"):
        size = priors[:, 2:] * np.exp(loc[:, 2:] * np.float32(SIZE_VARIANCE))
        low = priors[:, :2] + loc[:, :2] * np.float32(CENTRE_VARIANCE) * priors[:, 2:] - size / 2
        return np.concatenate([low, low + size], axis=1)


def fast_nms(
    boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, top_k: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fast NMS: removes a box if any better box of its class overlaps it, even a removed one.

    Whether a candidate is kept depends only on better ones. So the best candidates over all classes are
    processed first, and more are added only until `limit` are kept.

    Args:
        boxes: (n, 4) x1 y1 x2 y2.
        scores: (n, C), every class of every box.
        iou_threshold: Overlap above which the worse box is removed.
        top_k: Candidates per class.
        limit: Maximum number of kept boxes over all classes.

    Returns:
        Box indices and classes, (m,) each, best score first; equal scores by class, then by box.
    """
    flat = scores.T.ravel()  # (C * n,)
    take = min(len(flat), 4 * limit)
    while True:
        if take < len(flat):
            # Includes all scores that equal the last one, so that no tie is cut.
            worst = np.partition(flat, len(flat) - take)[len(flat) - take]
            best = np.flatnonzero(flat >= worst)
        else:
            best = np.arange(len(flat))
        best = best[np.argsort(-flat[best], kind="stable")]
        classes, rows = np.divmod(best, max(len(boxes), 1))
        kept = _survivors(boxes, rows, classes, iou_threshold, top_k)[:limit]
        if len(kept) == limit or len(best) == len(flat):
            return rows[kept], classes[kept]
        take = min(len(flat), take * 4)


def _survivors(
    boxes: np.ndarray, rows: np.ndarray, classes: np.ndarray, iou_threshold: float, top_k: int
) -> np.ndarray:
    """Positions in `rows` (best score first) that NMS keeps among the `top_k` of each class, ascending."""
    if not len(rows):
        return rows
    grouped = np.argsort(classes, kind="stable")
    group, starts, sizes = np.unique(classes[grouped], return_index=True, return_counts=True)[0:3]
    rank = np.arange(len(rows)) - np.repeat(starts, sizes)
    slot = np.repeat(np.arange(len(group)), sizes)
    allowed = rank < top_k
    slot, rank, grouped = slot[allowed], rank[allowed], grouped[allowed]
    table = np.zeros((len(group), int(rank.max()) + 1, 4), np.float32)  # padded with empty boxes
    table[slot, rank] = boxes[rows[grouped]]
    return np.sort(grouped[_worst_overlaps(table)[slot, rank] <= iou_threshold])


def _worst_overlaps(boxes: np.ndarray) -> np.ndarray:
    """The largest IoU of each box with a better one of its group: (G, R, 4), best first, to (G, R)."""
    groups, ranks = boxes.shape[:2]
    if groups * ranks * ranks <= _PAIRS:
        return np.triu(_iou(boxes), 1).max(axis=1)
    # As many rows of one group at a time as fit into memory.
    worst = np.zeros((groups, ranks), np.float32)
    rows = max(1, _PAIRS // ranks)
    for group, some in enumerate(boxes):
        for start in range(0, ranks, rows):
            better, others = some[start : start + rows], some[start:]
            overlaps = np.triu(_iou(better[None], others[None])[0], 1)
            np.maximum(worst[group, start:], overlaps.max(axis=0), out=worst[group, start:])
    return worst


def _iou(boxes: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """IoU of each pair of boxes (G, R, 4), or of boxes and others (G, Q, 4): (G, R, Q); 0 without an area."""
    # Each coordinate on its own: pairs as the innermost dimension take five times as long.
    first = np.ascontiguousarray(np.moveaxis(boxes, 2, 0))  # (4, G, R)
    second = first if others is None else np.ascontiguousarray(np.moveaxis(others, 2, 0))
    left, top, right, bottom = first[..., None]  # (G, R, 1)
    left_2, top_2, right_2, bottom_2 = second[..., None, :]  # (G, 1, Q)
    intersection = _overlap(left, right, left_2, right_2)
    intersection *= _overlap(top, bottom, top_2, bottom_2)
    union = (right - left) * (bottom - top) + (right_2 - left_2) * (bottom_2 - top_2) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _overlap(low: np.ndarray, high: np.ndarray, low_2: np.ndarray, high_2: np.ndarray) -> np.ndarray:
    """Length of the intersection of each pair of intervals (G, R, 1) and (G, 1, Q): (G, R, Q)."""
    length = np.minimum(high, high_2)
    length -= np.maximum(low, low_2)
    return np.maximum(length, 0, out=length)
