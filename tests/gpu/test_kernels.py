"""Kernels on the GPU compute what NumPy does."""

from __future__ import annotations

from functools import partial

import pytest

from yolact_bench.gpu_checks.kernels import KINDS, SMALL, SMALLEST, Sizes, kernel_cases, on_device
from yolact_runtime.cuda.device import Device

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("sizes", [SMALLEST, SMALL, Sizes()], ids=["smallest", "small", "550 pixels"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels(kind: str, sizes: Sizes) -> None:
    pytest.importorskip("pycuda.driver", reason="pycuda is not installed", exc_type=ImportError)
    with Device() as device, device.current:
        for case in kernel_cases(kind, sizes):
            case.check(partial(on_device, device))
