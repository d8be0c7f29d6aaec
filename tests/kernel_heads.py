"""Made network heads, and how detections of kernels are compared with others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import oracle
from cuda_on_cpu import FORWARD, run

from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.visible import class_words

DIGITS = 3  # coefficients that spell a prior's index to base 64, exact in half precision


@dataclass(frozen=True)
class Heads:
    """Inputs of detection: loc (N, P, 4), logits (N, P, C+1), priors (P, 4)."""

    loc: np.ndarray
    logits: np.ndarray
    priors: np.ndarray

    @property
    def coefficients(self) -> np.ndarray:
        """(N, P, DIGITS): they say which prior a detection comes from."""
        n, p = self.logits.shape[:2]
        index = np.arange(p)[:, None] // 64 ** np.arange(DIGITS) % 64
        return np.broadcast_to(index.astype(self.loc.dtype), (n, p, DIGITS))

    def half(self) -> Heads:
        """With loc and logits rounded to float16."""
        return Heads(self.loc.astype(np.float16), self.logits.astype(np.float16), self.priors)


@dataclass(frozen=True)
class Found:
    """Detections of one image: (n,) classes, scores and prior indices, (n, 4) boxes."""

    classes: np.ndarray
    scores: np.ndarray
    indices: np.ndarray
    boxes: np.ndarray


def indices_of(coefficients: np.ndarray) -> np.ndarray:
    """Prior indices from what `Heads.coefficients` gave."""
    return (coefficients.astype(np.int64) * 64 ** np.arange(DIGITS)).sum(axis=-1)


def make_heads(
    seed: int, priors: int, classes: int, batch: int = 1, background: float = 2.0, spread: float = 2.0
) -> Heads:
    """Random heads; the larger `background`, the fewer priors pass."""
    rng = np.random.default_rng(seed)
    centres, sizes = rng.uniform(0, 1, (priors, 2)), rng.uniform(0.05, 0.5, (priors, 2))
    logits = rng.standard_normal((batch, priors, classes + 1), np.float32) * np.float32(spread)
    logits[..., 0] += np.float32(background)
    return Heads(
        rng.standard_normal((batch, priors, 4), np.float32),
        logits,
        np.concatenate([centres, sizes], axis=1).astype(np.float32),
    )


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
    inputs = {
        "loc": heads.loc,
        "logits": heads.logits,
        "coefficients": heads.coefficients,
        "priors": heads.priors,
    }
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
