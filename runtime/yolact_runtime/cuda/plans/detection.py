"""The plan of `detect.cu`: raw heads to the detections of `yolact_runtime.detect.detect`."""

from __future__ import annotations

import numpy as np

from yolact_runtime.cuda.plans.plan import Buffer, Launch, Plan, check_limits, float_type
from yolact_runtime.errors import UsageError

SOURCE = "detect.cu"
MAX_PER_IMAGE = 1024  # of top_k and limit: a block sorts them in shared memory
MAX_BATCH = 65535
# Positions and offsets within an image are 32-bit.
MAX_ELEMENTS = 2**30
_FLOAT, _INT, _WORD = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.uint32)


def detection_plan(
    batch: int,
    priors: int,
    classes: int,
    coefficients: int = 32,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    top_k: int = 200,
    limit: int = 100,
    loc_dtype: np.typing.DTypeLike = np.float32,
    logits_dtype: np.typing.DTypeLike = np.float32,
    coefficients_dtype: np.typing.DTypeLike = np.float32,
    choose: bool = False,
) -> Plan:
    """Launches that turn a network's heads into detections.

    Inputs are `loc` (N, P, 4), `logits` (N, P, C+1) with the background first, `coefficients` (N, P, M) and
    `priors` (P, 4) float32 cx cy w h. Outputs are those of `yolact_runtime.detections.Detections`: `count`
    (N,) int32, `boxes` (N, K, 4), `scores` (N, K), `classes` (N, K) int32 and `kept_coefficients` (N, K, M);
    zero past `count`, best score first, equal scores by class, then by prior. Priors with a box or scores
    that are not finite are ignored. All arithmetic is in float32.

    Args:
        batch: N, 1..65535.
        priors: P, 1 or more.
        classes: C without background, 1 or more.
        coefficients: M, 1 or more.
        score_threshold: Priors need a higher foreground score than this (0..1).
        iou_threshold: Overlap above which fast NMS removes the worse box (0..1).
        top_k: Candidates per class, 1..1024.
        limit: K, detections per image, 1..1024.
        loc_dtype: float32 or float16, like the two below.
        logits_dtype: float32 or float16.
        coefficients_dtype: float32 or float16; the output is float32.
        choose: One more input, `wanted` uint32 with a bit for each class (see `class_words`): the best K are
            those of the classes whose bit is set.

    Raises:
        UsageError: a value is outside these limits.
    """
    check_limits(
        "the detection kernels take",
        {
            "batch": (batch, MAX_BATCH), "priors": (priors, MAX_ELEMENTS), "classes": (classes, MAX_ELEMENTS),
            "coefficients": (coefficients, MAX_ELEMENTS), "top_k": (top_k, MAX_PER_IMAGE),
            "limit": (limit, MAX_PER_IMAGE),
        },
    )  # fmt: skip
    for name, threshold in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if not 0 <= threshold <= 1:
            raise UsageError(f"the detection kernels take {name} 0..1, not {threshold}")
    for name, size in (
        ("priors x (classes + 1)", priors * (classes + 1)),
        ("limit x coefficients", limit * coefficients),
    ):
        if size > MAX_ELEMENTS:
            raise UsageError(f"the detection kernels take {name} up to {MAX_ELEMENTS}, not {size}")
    dtypes = {"loc": loc_dtype, "logits": logits_dtype, "coefficients": coefficients_dtype}
    loc, logits, mask = (float_type("the detection kernels take", *item) for item in dtypes.items())
    words = -(-priors // 32)
    # No more than `limit` of a class can be among the best `limit` of all classes.
    per_class = min(top_k, limit, priors)
    n, p, c, m, k = batch, priors, classes, coefficients, limit
    chosen = ("wanted",) if choose else ()
    class_nms = "wanted_class_nms" if choose else "class_nms"
    launches = (
        Launch(
            SOURCE, f"filter_scores<{loc}, {logits}>", (words, n, 1), (256, 1, 1), 0,
            ("loc", "logits", "priors", np.int32(p), np.int32(c + 1), np.float32(score_threshold),
             "words", "normalisers", "prior_boxes"),
        ),
        Launch(
            SOURCE, "list_candidates", (n, 1, 1), (1024, 1, 1), 0,
            ("words", np.int32(p), np.int32(words), "candidates", "candidate_counts"),
        ),
        Launch(
            # A box, a 64-bit key, a score and a prior for each of top_k.
            SOURCE, f"{class_nms}<{logits}>", (c, n, 1), (256, 1, 1), top_k * (16 + 8 + 4 + 4),
            ("logits", "normalisers", "prior_boxes", "candidates", "candidate_counts", *chosen,
             np.int32(p), np.int32(c + 1), np.int32(top_k), np.int32(per_class), np.float32(iou_threshold),
             "kept_keys", "kept_priors"),
        ),
        Launch(
            # A 64-bit key and a prior for each of limit.
            SOURCE, f"keep_best<{mask}>", (n, 1, 1), (1024, 1, 1), limit * (8 + 4),
            ("kept_keys", "kept_priors", "prior_boxes", "coefficients",
             np.int32(p), np.int32(c), np.int32(per_class), np.int32(m), np.int32(k),
             "count", "boxes", "scores", "classes", "kept_coefficients"),
        ),
    )  # fmt: skip
    return Plan(
        inputs=(
            Buffer("loc", (n, p, 4), np.dtype(loc_dtype)),
            Buffer("logits", (n, p, c + 1), np.dtype(logits_dtype)),
            Buffer("coefficients", (n, p, m), np.dtype(coefficients_dtype)),
            Buffer("priors", (p, 4), _FLOAT),
            *(Buffer(name, (-(-c // 32),), _WORD) for name in chosen),
        ),
        outputs=(
            Buffer("count", (n,), _INT),
            Buffer("boxes", (n, k, 4), _FLOAT),
            Buffer("scores", (n, k), _FLOAT),
            Buffer("classes", (n, k), _INT),
            Buffer("kept_coefficients", (n, k, m), _FLOAT),
        ),
        workspace=(
            Buffer("words", (n, words), _WORD),
            Buffer("normalisers", (n, p, 2), _FLOAT),
            Buffer("prior_boxes", (n, p, 4), _FLOAT),
            Buffer("candidates", (n, p), _INT),
            Buffer("candidate_counts", (n,), _INT),
            Buffer("kept_keys", (n, c, per_class), _WORD),
            Buffer("kept_priors", (n, c, per_class), _INT),
        ),
        launches=launches,
    )
