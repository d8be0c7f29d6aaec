"""The plan of `visible.cu`: how many detections need a mask."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from yolact_runtime.cuda.plans.plan import Buffer, Launch, Plan, check_limits

SOURCE = "visible.cu"
_FLOAT, _INT, _WORD = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.uint32)


def visible_plan(batch: int, detections: int, coefficients: int, classes: int) -> Plan:
    """The launch that counts the detections of each image that a result can show.

    Inputs of the plan: `boxes` (N, K, 4), `kept_coefficients` (N, K, M), `scores` and `mask_scores` (N, K),
    all float32; `count` int32 (N,); `classes` int32 (N, K); `wanted` uint32, a bit for each class to show
    (see `class_words`); and `limits` float32 (2,): the score to exceed, and the most detections to show.
    Outputs: `visible` int32 (N,), the number of first rows that contain all rows to show; and `mask_boxes`
    float32 (N, K, 4), the boxes of these first rows, NaN for those not to show, which then get no mask. Rows
    with numbers that are not finite are not shown.

    Args:
        batch: N, 1..65535.
        detections: K, 1..1024.
        coefficients: M, 1..1024.
        classes: C, without background.

    Raises:
        UsageError: a value is outside these limits.
    """
    check_limits(
        "the counting kernel takes",
        {"batch": (batch, 65535), "detections": (detections, 1024), "coefficients": (coefficients, 1024)},
    )
    each = (batch, detections)
    inputs = (
        Buffer("boxes", (*each, 4), _FLOAT),
        Buffer("kept_coefficients", (*each, coefficients), _FLOAT),
        Buffer("scores", each, _FLOAT),
        Buffer("mask_scores", each, _FLOAT),
        Buffer("count", (batch,), _INT),
        Buffer("classes", each, _INT),
        Buffer("wanted", (-(-classes // 32),), _WORD),
        Buffer("limits", (2,), _FLOAT),
    )
    names = tuple(buffer.name for buffer in inputs)
    launch = Launch(
        SOURCE,
        "count_visible",
        (batch, 1, 1),
        (32, 1, 1),
        0,
        (*names, np.int32(detections), np.int32(coefficients), np.int32(classes), "visible", "mask_boxes"),
    )
    outputs = Buffer("visible", (batch,), _INT), Buffer("mask_boxes", (*each, 4), _FLOAT)
    return Plan(inputs, outputs, (), (launch,))


def class_words(classes: Collection[int] | None, count: int) -> np.ndarray:
    """A bit for each of `count` classes, set for those in `classes` (None: all): (ceil(count / 32),) uint32.

    Bit i of word b is that of class 32 b + i.
    """
    flags = np.zeros(-(-count // 32) * 32, bool)
    flags[slice(count) if classes is None else list(classes)] = True
    return np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32, copy=False)
