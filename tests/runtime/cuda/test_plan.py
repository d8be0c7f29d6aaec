"""A plan that cannot run is refused where it is made."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from yolact_runtime.cuda.plans.plan import Buffer, Launch, Plan

LAUNCH = Launch("a.cu", "f<float>", (2, 1, 1), (64, 1, 1), 0, ("x", np.int32(3), np.float32(0.5), "y"))
X, Y = Buffer("x", (2, 3), "float16"), Buffer("y", (4,), np.int32)


def test_buffers_have_their_size():
    assert (X.dtype, X.nbytes, Y.nbytes) == (np.dtype(np.float16), 12, 16)


def test_each_source_and_kernel_is_named_once():
    other = dataclasses.replace(LAUNCH, kernel="g")
    plan = Plan((X,), (Y,), (), (LAUNCH, other, LAUNCH))
    assert plan.sources == ("a.cu",)
    assert plan.kernels("a.cu") == ("f<float>", "g")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "../a.cu"}, "file name"),
        ({"source": "a.cpp"}, "file name"),
        ({"grid": (0, 1, 1)}, "grid"),
        ({"grid": (1, 70000, 1)}, "grid"),
        ({"block": (33, 1, 1)}, "multiple of 32"),
        ({"block": (2048, 1, 1)}, "at most 1024"),
        ({"shared_bytes": 50000}, "shared_bytes"),
        ({"arguments": ("x", 3)}, "int"),
    ],
)
def test_launches_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LAUNCH, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"launches": ()}, "needs a launch"),
        ({"outputs": (Y, X)}, "two buffers"),
        ({"workspace": (Buffer("z", (1,), "float32"),)}, "no launch uses buffer z"),
        ({"inputs": ()}, "a launch uses buffer x"),
    ],
)
def test_plans_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Plan((X,), (Y,), (), (LAUNCH,)), **change)


def test_buffers_are_checked():
    with pytest.raises(ValueError, match="shape"):
        Buffer("x", (2, 0), "float32")
    with pytest.raises(ValueError, match="float64"):
        Buffer("x", (2,), "float64")
