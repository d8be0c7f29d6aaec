"""Raw network heads to detections in NumPy: box decoding and fast NMS (YOLACT, Sec. 5)."""

from __future__ import annotations

import logging
from typing import NamedTuple

import cv2
import numpy as np

from yolact_runtime.detections import Detections
from yolact_runtime.metadata import Metadata

log = logging.getLogger(__name__)

# Scales of the box offsets in training.
CENTRE_VARIANCE = 0.1
SIZE_VARIANCE = 0.2

# Pairs of boxes in memory at a time, and those of several classes at once, which stay in the caches.
_PAIRS, _TABLE = 1 << 20, 1 << 16
# Pairs of a class of more boxes are compared as a table, which has each twice but gathers none.
_MANY = 16
# Rows whose maxima are taken at once, columns that are only transposed, and those that halving ends with.
_ROWS, _FEW, _SHORT = 4096, 20, 10
# Priors processed first, for each detection to find; how far rounding may take a score above its bound.
_FIRST, _ROUNDING = 3, 1.001


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
        best = _best_of_image(loc[i], logits[i], priors, metadata, columns)
        count = len(best.priors)
        out.count[i] = count
        out.boxes[i, :count] = best.boxes
        out.scores[i, :count] = out.mask_scores[i, :count] = best.scores
        out.classes[i, :count] = best.classes
        out.coefficients[i, :count] = coefficients[i, best.priors]
    return out


class _Best(NamedTuple):
    """What NMS keeps of an image, best first: priors (m,), boxes (m, 4), scores (m,) and classes (m,)."""

    priors: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def _best_of_image(
    loc: np.ndarray, logits: np.ndarray, priors: np.ndarray, metadata: Metadata, columns: np.ndarray | None
) -> _Best:
    """The best `max_detections` of (P, 4) offsets and (P, C+1) logits, of the classes `columns` only.

    Best class minus background bounds the log odds of all scores of a prior. So the priors with the highest
    bounds are processed first, and more only if one of them may have a score above the last that was kept:
    NMS depends on better boxes only.
    """
    limit = metadata.max_detections
    bounds = _row_max(logits[:, 1:]) - logits[:, 0]
    lowest = np.log(max(metadata.score_threshold, 1e-30)) - 1e-3
    likely = np.flatnonzero(bounds >= lowest)
    bounds = bounds[likely]
    least = float(_nth_best(bounds, _FIRST * limit)) if len(likely) > _FIRST * limit else lowest
    last = 0.0  # the score of the last kept
    for enough in (False, False, True):
        every = enough or least <= lowest
        some = likely if every else likely[bounds >= least]
        chosen, scores = _scores(logits, some, metadata.score_threshold, 0 if every else last)
        boxes = decode(loc[chosen], priors[chosen])
        finite = np.isfinite(boxes).all(axis=1)
        if not (sound := finite.all()):
            chosen, scores, boxes = chosen[finite], scores[finite], boxes[finite]
        if columns is not None:
            scores = scores[:, columns]
        rows, found = fast_nms(boxes, scores, metadata.iou_threshold, metadata.nms_top_k, limit)
        kept = scores[rows, found]
        full = sound and len(kept) == limit  # all are processed where the warning has to count some
        if every or (full and kept[-1] >= last and kept[-1] > _ROUNDING / (1 + np.exp(-least))):
            break
        # All that may be as good as the last kept; too few if these remove some that were kept.
        last = float(kept[-1]) if full else 0.0
        least = -np.log(_ROUNDING**2 / last - 1) if full else lowest
    if not sound:
        log.warning("dropped %d boxes that are not finite", len(finite) - int(finite.sum()))
    return _Best(chosen[rows], boxes[rows], kept, found if columns is None else columns[found])


def _scores(
    logits: np.ndarray, priors: np.ndarray, score_threshold: float, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Those of some priors whose best foreground score exceeds the threshold and is `least` or more.

    Returns:
        Their indices (n,) and scores (n, C).
    """
    if not len(priors):
        return priors, np.zeros((0, logits.shape[1] - 1), np.float32)
    powers = logits[priors].astype(np.float32, copy=False)
    powers -= _row_max(powers)[:, None]
    np.exp(powers, out=powers)
    sums = powers.sum(axis=1)
    best = _row_max(powers[:, 1:]) / sums
    keep = np.flatnonzero((best > score_threshold) & (best >= least))
    scores = powers[keep, 1:]
    scores /= sums[keep, None]
    return priors[keep], scores


def _row_max(values: np.ndarray) -> np.ndarray:
    """The maximum of each row of (n, m) float32, m >= 1; with NaN in a row, NaN or the maximum of others.

    NumPy takes 2.5 times as long along 80 columns, whether transposed first or not. A few are transposed.
    """
    columns = values.shape[1]
    if columns <= _FEW:
        return _transposed(values).max(axis=0)
    half = (columns + 1) // 2  # of an odd number, both halves have the middle one
    found = np.empty(len(values), np.float32)
    # In a buffer of some rows: one for all would be memory that the system has to clear each time.
    buffer = np.empty((min(_ROWS, len(values)), half), np.float32)
    for start in range(0, len(values), _ROWS):
        rows = values[start : start + _ROWS]
        rows = cv2.max(rows[:, :half], rows[:, columns - half :], buffer[: len(rows)])
        while (width := rows.shape[1]) > _SHORT:
            narrow = (width + 1) // 2
            rows = cv2.max(rows[:, :narrow], rows[:, width - narrow :], rows[:, :narrow])
        found[start : start + _ROWS] = _transposed(rows).max(axis=0)
    return found


def _transposed(values: np.ndarray) -> np.ndarray:
    """(n, m) to (m, n), contiguous; OpenCV takes half the time, and returns another shape for one column."""
    return cv2.transpose(values).reshape(values.shape[::-1])


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
    total, take = scores.size, min(scores.size, 4 * limit)
    flat = scores.T.ravel()  # (C * n,)
    while True:
        best = _best(flat, scores, take)
        best = best[np.argsort(-flat[best], kind="stable")]
        classes, rows = np.divmod(best, max(len(boxes), 1))
        kept = _survivors(boxes[rows], classes, iou_threshold, top_k)[:limit]
        if len(kept) == limit or len(best) == total:
            return rows[kept], classes[kept]
        take = min(total, take * 4)


def _best(flat: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` best of `flat`, and of all that equal the last one, so that no tie is cut."""
    if count == len(flat):
        return np.arange(len(flat))
    if scores.shape[1] > 1 and count < len(scores):
        # The best score of each box is a bound that leaves few others to choose from.
        bound = _nth_best(_row_max(scores), count)
        some = np.flatnonzero(flat >= bound)
        if len(some) >= count:
            values = flat[some]
            return some[values >= _nth_best(values, count)]
    return np.flatnonzero(flat >= _nth_best(flat, count))


def _nth_best(values: np.ndarray, count: int) -> np.floating:
    """The least of the `count` greatest."""
    place = len(values) - count
    return np.partition(values, place)[place]


def _survivors(boxes: np.ndarray, classes: np.ndarray, iou_threshold: float, top_k: int) -> np.ndarray:
    """Positions that NMS keeps among the `top_k` boxes of each class, ascending; the boxes are best first."""
    grouped = np.argsort(classes, kind="stable")
    counts = np.bincount(classes)
    rank = np.arange(len(grouped)) - (np.cumsum(counts) - counts)[classes[grouped]]
    allowed = rank < top_k
    grouped, rank = grouped[allowed], rank[allowed]
    corners = np.ascontiguousarray(boxes[grouped].T)  # (4, n)
    sizes = np.minimum(counts, top_k)
    many = sizes > _MANY
    kept = _kept_of_few(corners, np.where(many[classes[grouped]], 0, rank), iou_threshold)
    starts = np.cumsum(sizes) - sizes
    # Classes of about the same size, as many as the caches hold, padded with any boxes after their last.
    alike = np.flatnonzero(many)
    alike = alike[np.argsort(-sizes[alike], kind="stable")]
    while len(alike):
        ranks = np.arange(sizes[alike[0]])
        fit = max(1, _TABLE // len(ranks) ** 2)
        some, alike = alike[:fit, None], alike[fit:]
        place, used = starts[some] + ranks, ranks < sizes[some]
        table = corners.take(place, axis=1, mode="clip")
        kept[place[used]] = _kept_of_many(table, iou_threshold)[used]
    return np.sort(grouped[kept])


def _kept_of_few(corners: np.ndarray, better: np.ndarray, iou_threshold: float) -> np.ndarray:
    """(n,) bool: boxes (4, n) that none of the `better` (n,) ones right before them overlaps."""
    kept = np.ones(len(better), bool)
    ends = np.cumsum(better)
    start = 0
    while start < len(better):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
        counts = better[start:stop]
        box = np.repeat(np.arange(start, stop), counts)
        other = np.arange(len(box)) + np.repeat(np.arange(start, stop) - ends[start:stop] + before, counts)
        over = _iou(corners[:, other], corners[:, box]) > iou_threshold
        kept[box[over]] = False
        start = stop
    return kept


def _kept_of_many(corners: np.ndarray, iou_threshold: float) -> np.ndarray:
    """(G, R) bool: boxes (4, G, R) of G classes, best first, that no better one of their class overlaps."""
    groups, ranks = corners.shape[1:]
    kept = np.ones((groups, ranks), bool)
    step = max(1, _PAIRS // (groups * ranks))
    for start in range(0, ranks, step):
        better, others = corners[:, :, start : start + step, None], corners[:, :, None, start:]
        kept[:, start:] &= ~np.triu(_iou(better, others) > iou_threshold, 1).any(axis=1)
    return kept


def _iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of boxes (4, ...) with others, pair by pair; 0 without an area."""
    left, top, right, bottom = boxes
    left_2, top_2, right_2, bottom_2 = others
    with np.errstate(over="ignore", invalid="ignore"):
        intersection = _overlap(left, right, left_2, right_2)
        intersection *= _overlap(top, bottom, top_2, bottom_2)
        union = (right - left) * (bottom - top) + (right_2 - left_2) * (bottom_2 - top_2) - intersection
        return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _overlap(low: np.ndarray, high: np.ndarray, low_2: np.ndarray, high_2: np.ndarray) -> np.ndarray:
    """Length of the intersection of each pair of intervals."""
    length = np.minimum(high, high_2)
    length -= np.maximum(low, low_2)
    return np.maximum(length, 0, out=length)
