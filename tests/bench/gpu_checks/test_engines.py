"""The checks of engines, on a fake GPU: right engines pass, and each kind of fault is found."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engine_files import write_engine
from fake_gpu import FakeGpu
from fake_onnx import NATIVE, native_arrays

from yolact_bench.gpu_checks import engines
from yolact_bench.gpu_checks.engines import (
    check_graphs,
    check_growth,
    check_results,
    check_streams,
    compare_results,
    device_memory,
)
from yolact_bench.gpu_checks.kernels import MismatchError
from yolact_runtime import Result, load_engine
from yolact_runtime.cuda.device import Device
from yolact_runtime.engines.load import UnknownOptionError

IMAGES = [np.full((20, 30 + 5 * n, 3), 255 - n, np.uint8) for n in range(3)]


@pytest.fixture
def path(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(engines, "CALLS_PER_THREAD", 5)
    return write_engine(tmp_path, native_arrays(), NATIVE)


@pytest.fixture
def expected(path: Path) -> list[Result]:
    with load_engine(path.with_suffix(".onnx"), backend="onnxruntime") as engine:
        return engine.predict(IMAGES, 0.0, 60)


def test_a_right_engine_passes(gpu: FakeGpu, path: Path, expected: list[Result]) -> None:
    opened = partial(load_engine, path)
    found = check_results(opened, IMAGES, expected)
    assert found["matched"] == 1 and found["differing pixels"] == 0 and float(found["network ms"]) > 0
    assert check_graphs(opened, IMAGES, expected, True) == {"graphs": "equal"}
    assert gpu.names.count("cuGraphLaunch")
    assert check_streams(opened, IMAGES, True, 3) == {"streams": 3}
    with Device() as device:
        found = check_growth(opened, IMAGES, 60, device_memory(device))
    assert found["calls"] == 60 and found["device growth bytes"] == found["device bytes left"] == 0
    assert not gpu.held and not gpu.problems


def test_engines_without_graphs_and_streams_are_left_alone(path: Path, expected: list[Result]) -> None:
    def opened(**options: Any) -> Any:
        if options:
            raise UnknownOptionError("no such option")
        return load_engine(path)

    assert check_graphs(opened, IMAGES, expected, False) == {"graphs": "no such option"}
    assert check_streams(opened, IMAGES, False, 3) == {"streams": 1}


def test_masks_on_the_cpu_are_found(path: Path, expected: list[Result]) -> None:
    opened = partial(load_engine, path.with_suffix(".onnx"), backend="onnxruntime")
    with pytest.raises(MismatchError, match="only the network runs on the GPU"):
        check_results(opened, IMAGES, expected)


def test_wrong_kernels_in_an_engine_are_found(
    gpu: FakeGpu, path: Path, expected: list[Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edges of one mask are wrong in every call."""
    original = gpu.copy

    def copy(target: int, source: int, nbytes: int, checked: list[int]) -> None:
        original(target, source, nbytes, checked)
        if gpu.ran[-1][1] == "download":
            words = np.ctypeslib.as_array((ctypes.c_int32 * (nbytes // 4)).from_address(target))
            words[words > 300] = 300

    monkeypatch.setattr(gpu, "copy", copy)
    with pytest.raises(MismatchError, match="not those of the CPU"):
        check_results(partial(load_engine, path), IMAGES, expected)


def test_other_results_are_found(expected: list[Result]) -> None:
    assert compare_results(expected, expected)["matched"] == 1
    with pytest.raises(MismatchError, match=r"matched 0\.5"):
        compare_results([with_rows(one, boxes=-0.1) for one in expected], expected)
    with pytest.raises(MismatchError, match=r"score error 0\.1"):
        compare_results([with_rows(one, scores=0.1) for one in expected], expected)
    with pytest.raises(MismatchError, match="score error nan"):
        compare_results([with_rows(one, scores=np.nan) for one in expected], expected)
    with pytest.raises(MismatchError, match=r"matched 0\.5"):
        compare_results([with_rows(one, boxes=np.nan) for one in expected], expected)
    with pytest.raises(MismatchError, match="nothing was found"):
        compare_results([], [])


def with_rows(result: Result, boxes: float = 0.0, scores: float = 0.0) -> Result:
    """With the first row changed."""
    import copy

    changed = copy.copy(result)
    for name, by in (("relative_boxes", boxes), ("scores", scores)):
        array = getattr(result, name).copy()
        array[0] = array[0] + by if name == "relative_boxes" else array[0] * (1 + by)
        object.__setattr__(changed, name, array)
    return changed


def test_streams_that_disturb_each_other_are_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Iterator[int] = iter(range(10**6))

    def opened(**options: Any) -> Any:
        engine = load_engine(path, **options)
        predict = engine.predict

        def sometimes(images: Any, *limits: Any) -> list[Result]:
            return predict([image // 2 for image in images] if next(calls) % 12 == 10 else images, *limits)

        monkeypatch.setattr(engine, "predict", sometimes)
        return engine

    with pytest.raises(MismatchError, match="scores of image 0 differ"):
        check_streams(opened, IMAGES, True, 3)


class Idle:
    """An engine that does nothing."""

    def __enter__(self) -> Idle:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def predict(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "words"), [("device", "device growth bytes over 60 calls"), ("host", "host growth bytes")]
)
def test_growth_is_found(name: str, words: str) -> None:
    used = iter(range(0, 10**12, 2**25))
    watched = {"free": lambda: 2**40, "resident": lambda: 0}
    watched |= {"free": lambda: 2**40 - next(used)} if name == "device" else {"resident": lambda: next(used)}
    with pytest.raises(MismatchError, match=words):
        check_growth(Idle, IMAGES, 60, **watched)


def test_memory_that_is_not_given_back_is_found() -> None:
    left = iter([2**30, 2**30 - 1000, 2**30 - 1000, 2**30 - engines.DEVICE_GROWTH - 1] * 2)
    with pytest.raises(MismatchError, match=r"device bytes left .*other programs on the GPU count"):
        check_growth(Idle, IMAGES, 30, lambda: next(left), lambda: 0)


def test_memory_that_is_taken_once_is_no_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []
    fake = SimpleNamespace(is_available=lambda: True, empty_cache=lambda: emptied.append(1))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=fake))
    left = iter([2**30, *[2**29] * 7])
    assert check_growth(Idle, IMAGES, 30, lambda: next(left), lambda: 0)["device bytes left"] == 0
    assert len(emptied) == 8  # before each look
