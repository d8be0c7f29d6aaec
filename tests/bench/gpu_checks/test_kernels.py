"""The comparison of kernels with NumPy: right ones pass, and each kind of wrong number is found."""

from __future__ import annotations

from collections.abc import Callable

import cuda_on_cpu
import numpy as np
import pytest
from fake_gpu import FakeGpu

from yolact_bench.gpu_checks.kernels import KINDS, SMALL, SMALLEST, MismatchError, kernel_cases, on_device
from yolact_runtime.cuda.device import Device
from yolact_runtime.cuda.plans.plan import Plan

BATCHES = (1, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_right_kernels_pass(kind: str) -> None:
    cases = list(kernel_cases(kind, SMALL, BATCHES))
    assert {case.name.split(", ")[1] for case in cases} == {"batch 1", "batch 3"}
    for case in [*cases, *kernel_cases(kind, SMALLEST, BATCHES)]:
        for error in case.check(cuda_on_cpu.run).values():
            assert error >= 0


def test_they_run_on_a_device(gpu: FakeGpu) -> None:
    with Device() as device, device.current:
        for kind in KINDS:
            for case in kernel_cases(kind, SMALL, (1,)):
                case.check(lambda plan, inputs: on_device(device, plan, inputs))
    assert not gpu.held and not gpu.problems


def test_two_runs_that_differ_are_found(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def call(*arguments: object) -> None:
        original(*arguments)
        calls.append(None)
        if len(calls) == 2:
            with_address = arguments[6][-1]  # the last argument is the output
            np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * 4).from_address(with_address))[:] = 7

    original = cuda_on_cpu.call
    monkeypatch.setattr(cuda_on_cpu, "call", call)
    (case, *_) = kernel_cases("resize", SMALL, (1,))
    with (
        Device() as device,
        device.current,
        pytest.raises(MismatchError, match="images differs between two runs"),
    ):
        case.check(lambda plan, inputs: on_device(device, plan, inputs))


def one_pixel(out: dict[str, np.ndarray]) -> None:
    out["images"].flat[77] += 1


def one_score(out: dict[str, np.ndarray]) -> None:
    out["scores"][0, 3] *= 1 + 3e-5


def one_class(out: dict[str, np.ndarray]) -> None:
    out["classes"][0, 2] = (out["classes"][0, 2] + 1) % 5


def one_box(out: dict[str, np.ndarray]) -> None:
    out["boxes"][0, 5, 2] += 1e-4


def a_row_less(out: dict[str, np.ndarray]) -> None:
    last = out["count"][0] - 1
    for name in ("boxes", "scores", "classes", "kept_coefficients"):
        out[name][0, 0:last] = out[name][0, 1 : last + 1]
        out[name][0, last] = 0
    out["count"][0] = last


def a_row_twice(out: dict[str, np.ndarray]) -> None:
    for name in ("boxes", "scores", "classes", "kept_coefficients"):
        out[name][0, 1] = out[name][0, 0]


def leftovers(out: dict[str, np.ndarray]) -> None:
    out["count"][0] -= 1


def one_cell(out: dict[str, np.ndarray]) -> None:
    out["masks"][0, 4, 8, 8] += 1e-4


def an_edge_in_a_hundred(out: dict[str, np.ndarray]) -> None:
    stop = out["offsets"][0, -1] // 2
    out["edges"][0, np.flatnonzero(np.diff(out["edges"][0, :stop]) > 1)[::50]] += 1


def far_edge(out: dict[str, np.ndarray]) -> None:
    out["edges"][0, 1] = out["edges"][0, 2] + 5


def one_row_more(out: dict[str, np.ndarray]) -> None:
    out["visible"][0] += 1


def another_box(out: dict[str, np.ndarray]) -> None:
    out["mask_boxes"][0, 0] = 0.5


@pytest.mark.parametrize(
    ("kind", "spoil", "words"),
    [
        ("resize", one_pixel, "resize, batch 1, uint8: pixels differ from NumPy's by up to 1"),
        ("detection", one_score, "score error is 3e-05"),
        ("detection", one_class, "missing|does not find"),
        ("detection", one_box, "box error"),
        ("detection", a_row_less, "1 detections of image 0 are missing"),
        ("detection", a_row_twice, "twice"),
        ("detection", leftovers, "is not zero past its"),
        ("masks", one_cell, "mask values differ from NumPy's by up to 0.0001"),
        ("rle", an_edge_in_a_hundred, "edges differ from NumPy's"),
        ("rle", far_edge, "not ascending"),
        ("visible", one_row_more, "rows of image 0 are to be shown"),
        ("visible", another_box, "boxes of the rows to show"),
    ],
)
def test_a_wrong_number_is_found(
    kind: str, spoil: Callable[[dict[str, np.ndarray]], None], words: str
) -> None:
    (case, *_) = kernel_cases(kind, SMALL, (1,))

    def wrong(plan: Plan, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = cuda_on_cpu.run(plan, inputs)
        spoil(out)
        return out

    with pytest.raises(MismatchError, match=words):
        case.check(wrong)


NAN = [
    (kind, output)
    for kind in ("resize", "detection", "masks", "visible")
    for case in list(kernel_cases(kind, SMALL, (1,)))[-1:]
    for output in (buffer.name for buffer in case.plan.outputs if buffer.dtype.kind == "f")
]


@pytest.mark.parametrize(("kind", "output"), NAN)
def test_outputs_that_are_no_numbers_are_found(kind: str, output: str) -> None:
    *_, case = kernel_cases(kind, SMALL, (1,))
    out = cuda_on_cpu.run(case.plan, case.inputs)
    for spoiled in (1, out[output].size):  # the first number, and all
        array = out[output].copy()
        array.flat[:spoiled] = np.nan
        with pytest.raises(MismatchError):
            case.check(lambda *_, array=array: {**out, output: array})
