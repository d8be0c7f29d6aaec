"""The detection kernels, run on the CPU, against the float64 oracle and the runtime's NumPy detection."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cuda_on_cpu import FORWARD, REVERSED
from fake_onnx import RUNTIME
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_heads import Found, Heads, assert_same, indices_of, make_heads, oracle_detections, run_kernels, separated

from yolact_runtime.detect import detect
from yolact_runtime.errors import UsageError
from yolact_runtime.kernels.detection import detection_plan


def numpy_detections(heads: Heads, limit: int = 100) -> list[Found]:
    """Of the runtime's NumPy detection, with some rows past `limit`."""
    classes = heads.logits.shape[2] - 1
    meta = dataclasses.replace(
        RUNTIME, class_names=tuple(map(str, range(classes))), category_ids=tuple(range(classes)), max_detections=limit + 50
    )
    n = len(heads.loc)
    out = detect(
        heads.loc.astype(np.float32), heads.logits.astype(np.float32), heads.coefficients.astype(np.float32),
        np.zeros((n, 1, 1, 3), np.float32), heads.priors, meta,
    )  # fmt: skip
    return [
        Found(out.classes[i, :k], out.scores[i, :k], indices_of(out.coefficients[i, :k]), out.boxes[i, :k])
        for i, k in enumerate(out.count)
    ]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    priors=st.integers(1, 70),
    classes=st.sampled_from([1, 2, 6, 40, 100]),
    batch=st.integers(1, 2),
    background=st.floats(-2, 8),
    score_threshold=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    iou_threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    top_k=st.sampled_from([1, 4, 33, 200]),
    limit=st.sampled_from([1, 5, 100, 200]),
    repeat=st.booleans(),
    half=st.booleans(),
    order=st.sampled_from([FORWARD, REVERSED, 5]),
)
def test_random_heads_agree_with_the_oracle(
    seed, priors, classes, batch, background, score_threshold, iou_threshold, top_k, limit, repeat, half, order
):
    heads = make_heads(seed, priors, classes, batch, background)
    if half:
        heads = heads.half()
    if repeat:  # equal scores; of equal boxes the first stays
        heads.logits[:, priors // 2 :] = heads.logits[:, : priors - priors // 2]
    for image in range(batch):
        assume(separated(heads, image, score_threshold, iou_threshold))
    keep = {"score_threshold": score_threshold, "iou_threshold": iou_threshold, "top_k": top_k, "limit": limit}
    for image, found in enumerate(run_kernels(heads, order, **keep)):
        expected = oracle_detections(heads, image, **keep)
        np.testing.assert_array_equal(found.classes, expected.classes)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-5)
