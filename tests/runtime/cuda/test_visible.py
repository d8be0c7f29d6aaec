"""How many detections need a mask, against the rule written with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_on_cpu import FORWARD, REVERSED, run
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_runtime.cuda.plans.visible import visible_plan
from yolact_runtime.errors import UsageError

N, K, M = 2, 70, 3
PLAN = visible_plan(N, K, M)


def expected(inputs: dict[str, np.ndarray], image: int) -> int:
    rows = slice(0, inputs["count"][image])
    sound = np.isfinite(inputs["boxes"][image, rows]).all(1)
    sound &= np.isfinite(inputs["kept_coefficients"][image, rows]).all(1)
    sound &= np.isfinite(inputs["scores"][image, rows]) & np.isfinite(inputs["mask_scores"][image, rows])
    threshold, most = inputs["limits"]
    shown = np.flatnonzero(sound & (inputs["scores"][image, rows] > threshold))[: int(most)]
    return int(shown[-1]) + 1 if len(shown) else 0


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.tuples(st.integers(0, K), st.integers(0, K)),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    most=st.sampled_from([1, 2, 31, 32, 33, K]),
    order=st.sampled_from([FORWARD, REVERSED]),
)
def test_the_rows_to_show_are_among_the_first(seed, counts, threshold, most, order) -> None:
    rng = np.random.default_rng(seed)
    inputs = {
        "boxes": rng.uniform(0, 1, (N, K, 4)).astype(np.float32),
        "kept_coefficients": rng.normal(size=(N, K, M)).astype(np.float32),
        # Multiples of 1/8: thresholds are met exactly.
        "scores": -np.sort(-rng.integers(0, 9, (N, K)) / 8, axis=1).astype(np.float32),
        "mask_scores": rng.uniform(0, 1, (N, K)).astype(np.float32),
        "count": np.array(counts, np.int32),
        "limits": np.array([threshold, most], np.float32),
    }
    for name in ("boxes", "kept_coefficients", "scores", "mask_scores"):
        flat = inputs[name].reshape(-1)
        flat[rng.integers(0, flat.size, 6)] = rng.choice([np.nan, np.inf, -np.inf], 6)
    got = run(PLAN, inputs, order)["visible"]
    assert got.tolist() == [expected(inputs, image) for image in range(N)]


def test_limits() -> None:
    with pytest.raises(UsageError, match=r"detections 1\.\.1024, not 1025"):
        visible_plan(1, 1025, 32)
