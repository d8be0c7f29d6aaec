"""The plan of `visible.cu`: how many detections need a mask."""

from __future__ import annotations

import numpy as np

from yolact_runtime.cuda.plans.plan import Buffer, Launch, Plan, check_limits

SOURCE = "visible.cu"
_FLOAT, _INT = np.dtype(np.float32), np.dtype(np.int32)


def visible_plan(batch: int, detections: int, coefficients: int) -> Plan:
    """The launch that counts the detections of each image that a result can show.

    Inputs of the plan: `boxes` (N, K, 4), `kept_coefficients` (N, K, M), `scores` and `mask_scores` (N, K),
    all float32; `count` int32 (N,); and `limits` float32 (2,): the score to exceed, and the most detections
    to show. Output: `visible` int32 (N,), the number of first rows that contain all rows to show. Rows with
    numbers that are not finite are not shown.

    Args:
        batch: N, 1..65535.
        detections: K, 1..1024.
        coefficients: M, 1..1024.

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
        Buffer("limits", (2,), _FLOAT),
    )
    names = tuple(buffer.name for buffer in inputs)
    launch = Launch(
        SOURCE,
        "count_visible",
        (batch, 1, 1),
        (32, 1, 1),
        0,
        (*names, np.int32(detections), np.int32(coefficients), "visible"),
    )
    return Plan(inputs, (Buffer("visible", (batch,), _INT),), (), (launch,))
