"""How many detections need a mask, against the rule written with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_on_cpu import FORWARD, REVERSED, run
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_runtime.cuda.plans.visible import class_words, visible_plan
from yolact_runtime.errors import UsageError

N, K, M, C = 2, 70, 3, 40
PLAN = visible_plan(N, K, M, C)


def expected(inputs: dict[str, np.ndarray], image: int, wanted: set[int]) -> tuple[int, np.ndarray]:
    """Number of first rows, and which of all rows have a mask if they are among these."""
    rows = slice(0, inputs["count"][image])
    sound = np.isfinite(inputs["boxes"][image, rows]).all(1)
    sound &= np.isfinite(inputs["kept_coefficients"][image, rows]).all(1)
    sound &= np.isfinite(inputs["scores"][image, rows]) & np.isfinite(inputs["mask_scores"][image, rows])
    sound &= np.isin(inputs["classes"][image, rows], list(wanted))
    threshold, most = inputs["limits"]
    sound &= inputs["scores"][image, rows] > threshold
    shown = np.flatnonzero(sound)[: int(most)]
    return int(shown[-1]) + 1 if len(shown) else 0, sound


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.tuples(st.integers(0, K), st.integers(0, K)),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    most=st.sampled_from([1, 2, 31, 32, 33, K]),
    wanted=st.none() | st.sets(st.sampled_from([0, 3, 31, 32, 39])),
    order=st.sampled_from([FORWARD, REVERSED]),
)
def test_the_rows_to_show_are_among_the_first(seed, counts, threshold, most, wanted, order) -> None:
    rng = np.random.default_rng(seed)
    inputs = {
        "boxes": rng.uniform(0, 1, (N, K, 4)).astype(np.float32),
        "kept_coefficients": rng.normal(size=(N, K, M)).astype(np.float32),
        # Multiples of 1/8: thresholds are met exactly.
        "scores": -np.sort(-rng.integers(0, 9, (N, K)) / 8, axis=1).astype(np.float32),
        "mask_scores": rng.uniform(0, 1, (N, K)).astype(np.float32),
        "count": np.array(counts, np.int32),
        "classes": rng.choice([-1, 0, 3, 31, 32, 39, 10**9], (N, K)).astype(np.int32),
        "wanted": class_words(wanted, C),
        "limits": np.array([threshold, most], np.float32),
    }
    for name in ("boxes", "kept_coefficients", "scores", "mask_scores"):
        flat = inputs[name].reshape(-1)
        flat[rng.integers(0, flat.size, 6)] = rng.choice([np.nan, np.inf, -np.inf], 6)
    got = run(PLAN, inputs, order)
    for image in range(N):
        stop, sound = expected(inputs, image, set(range(C)) if wanted is None else wanted)
        assert got["visible"][image] == stop
        boxes = np.where(sound[:stop, None], inputs["boxes"][image, :stop], np.nan)
        np.testing.assert_array_equal(got["mask_boxes"][image, :stop], boxes)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 80])
def test_a_bit_for_each_class(count: int) -> None:
    for wanted in (None, set(), {0}, {count - 1}, set(range(0, count, 3))):
        words = class_words(wanted, count)
        assert words.dtype == np.uint32 and len(words) == -(-count // 32)
        bits = [cls for cls in range(32 * len(words)) if int(words[cls // 32]) >> cls % 32 & 1]
        assert bits == (list(range(count)) if wanted is None else sorted(wanted))


def test_limits() -> None:
    with pytest.raises(UsageError, match=r"detections 1\.\.1024, not 1025"):
        visible_plan(1, 1025, 32, 80)
