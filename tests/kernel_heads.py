"""Detections of random heads by the kernels on the CPU, and how they are compared with others."""

from __future__ import annotations

import numpy as np
import oracle
from cuda_on_cpu import FORWARD, run

from yolact_bench.gpu_checks.inputs import DIGITS, Heads, indices_of
from yolact_bench.gpu_checks.kernels import Found
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.visible import class_words


def run_kernels(
    heads: Heads,
    order: int = FORWARD,
    skip_barrier: tuple[str, int] = ("", 0),
    wanted: set[int] | None = None,
    **settings,
) -> list[Found]:
    """Detections of each image, of the wanted classes; checks what every run must keep."""
    n, p, width = heads.logits.shape
    settings["choose"] = wanted is not None
    plan = detection_plan(
        n, p, width - 1, DIGITS,
        loc_dtype=heads.loc.dtype, logits_dtype=heads.logits.dtype, coefficients_dtype=heads.loc.dtype,
        **settings,
    )  # fmt: skip
    inputs = heads.buffers
    if wanted is not None:
        inputs["wanted"] = class_words(wanted, width - 1)
    out = run(plan, inputs, order, skip_barrier=skip_barrier)
    found = []
    for i, count in enumerate(out["count"]):
        assert 0 <= count <= settings.get("limit", 100)
        for name in ("boxes", "scores", "classes", "kept_coefficients"):
            assert not out[name][i, count:].any(), f"{name} is not zero past count"
        assert (np.diff(out["scores"][i, :count]) <= 0).all()
        found.append(
            Found(
                out["classes"][i, :count],
                out["scores"][i, :count],
                indices_of(out["kept_coefficients"][i, :count]),
                out["boxes"][i, :count],
            )
        )
    return found


def oracle_detections(heads: Heads, image: int = 0, **settings) -> Found:
    """What the float64 oracle finds in one image; priors that are not finite numbers are left out."""
    with np.errstate(all="ignore"):
        scores = oracle.softmax(heads.logits[image])
        # What overflows float32 is infinite there.
        boxes = oracle.decode(heads.loc[image], heads.priors).astype(np.float32)
    rows = np.flatnonzero(np.isfinite(scores).all(1) & np.isfinite(boxes).all(1))
    found = oracle.detect(
        heads.loc[image, rows],
        heads.logits[image, rows],
        heads.coefficients[image, rows],
        heads.priors[rows],
        **settings,
    )
    return Found(found["classes"], found["scores"], indices_of(found["coefficients"]), found["boxes"])


def assert_same(found: Found, expected: Found, limit: int, tie: float = 1e-6) -> None:
    """Same detections in the same order, but for neighbours whose expected scores are closer than `tie`.

    Args:
        found: Up to `limit` rows.
        expected: May have more rows than `limit`, so that those tied with the last one are known.
        limit: K.
        tie: Relative to the score.
    """
    n = min(limit, len(expected.scores))
    assert len(found.scores) == n
    np.testing.assert_allclose(found.scores, expected.scores[:n], rtol=1e-5, atol=1e-12)
    keys = {(c, i): row for row, (c, i) in enumerate(zip(expected.classes, expected.indices, strict=True))}
    rows = [keys[c, i] for c, i in zip(found.classes, found.indices, strict=True)]
    assert len(set(rows)) == n
    for position, row in enumerate(rows):
        if row != position:
            assert abs(expected.scores[row] - expected.scores[position]) <= tie * expected.scores[position]
    size = np.maximum(np.abs(expected.boxes[rows]).max(axis=1, keepdims=True), 1)
    assert (np.abs(found.boxes - expected.boxes[rows]) <= 1e-5 * size).all()


def separated(heads: Heads, image: int, score_threshold: float, iou_threshold: float) -> bool:
    """Whether rounding to float32 cannot change which priors, in which order, are kept."""
    scores = oracle.softmax(heads.logits[image])[:, 1:]
    boxes = oracle.decode(heads.loc[image], heads.priors)
    best = scores.max(axis=1)
    if (np.abs(best - score_threshold) < 1e-5 * best).any():
        return False
    ranked = np.sort(scores.ravel())
    gap = np.diff(ranked)
    if ((gap > 0) & (gap < 1e-5 * ranked[1:])).any():
        return False
    overlaps = np.array([[oracle.iou(a, b) for a in boxes] for b in boxes])
    return not (
        (overlaps != iou_threshold) & (overlaps > 0) & (np.abs(overlaps - iou_threshold) < 1e-5)
    ).any()
