"""The CPU shim enforces CUDA's rules."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_on_cpu import FORWARD, REVERSED, KernelError, run

from yolact_runtime.cuda.plans.plan import Buffer, Launch, Plan

THREADS = 256


def plan(arguments: tuple = ("x", np.int32(1000), "y")) -> Plan:
    launch = Launch("test.cu", "work", (4, 1, 1), (THREADS, 1, 1), THREADS * 4, arguments)
    return Plan((Buffer("x", (1000,), np.int32),), (Buffer("y", (1000,), np.int32),), (), (launch,))


def execute(body: str, order: int = FORWARD, **options: object) -> np.ndarray:
    source = f"""
        #include "common.cuh"
        __global__ void work(const int *x, int n, int *y) {{
            const int i = blockIdx.x * blockDim.x + threadIdx.x, t = threadIdx.x;
            DYNAMIC_SHARED(int, memory);
            (void)memory; (void)t; (void)i; (void)n;
            {body}
        }}
    """
    x = np.arange(1000, dtype=np.int32)
    return run(plan(**options), {"x": x}, order, {"test.cu": source})["y"]


@pytest.mark.parametrize("order", [FORWARD, REVERSED, 7])
def test_barrier(order: int) -> None:
    body = "memory[t] = i < n ? x[i] : 0; __syncthreads(); if (i < n) y[i] = memory[t ^ 1];"
    np.testing.assert_array_equal(execute(body, order), np.arange(1000) ^ 1)


def test_a_deleted_barrier_shows() -> None:
    body = "memory[t] = i < n ? x[i] : 0; if (i < n) y[i] = memory[t ^ 1];"
    assert (execute(body) != np.arange(1000) ^ 1).any()


@pytest.mark.parametrize("order", [FORWARD, REVERSED, 7])
def test_scan_of_a_block(order: int) -> None:
    body = f"""
        int total;
        const int before = block_exclusive_sum<{THREADS}>(i < n ? x[i] : 0, total);
        if (i < n) y[i] = before + total;
    """
    expected = np.zeros(1024, np.int64)
    expected[:1000] = np.arange(1000)
    expected = expected.reshape(4, THREADS)
    expected = np.cumsum(expected, 1) - expected + expected.sum(1, keepdims=True)
    np.testing.assert_array_equal(execute(body, order), expected.ravel()[:1000])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (t) __syncthreads();", "deadlock"),
        ("if (t < 64) __syncthreads();\n else __syncthreads();", "different barriers"),
        ("if (t % 32) __syncwarp();", "deadlock|returned"),
        (
            "if (t % 32) __shfl_sync(kFullWarp, t, 0);\n else __ballot_sync(kFullWarp, t);",
            "different operations",
        ),
        ("__shfl_sync(1u << t % 32, t, (t + 1) % 32);", "outside its mask"),
        ("if (i == 0) y[n] = 1;", "outside buffer y"),
        ("if (i == 0) const_cast<int *>(x)[5] = 1;", "changed input x"),
    ],
)
def test_broken_rules(body: str, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        execute(body)


def test_arguments_must_fit() -> None:
    with pytest.raises(KernelError, match="argument 1"):
        execute("", arguments=("x", np.float32(1), "y"))
    with pytest.raises(KernelError, match="takes 3"):
        execute("", arguments=("x", "y"))
