"""Engines run on the GPU: results, graphs, streams, growth, and PyTorch in the same process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from yolact_bench.gpu_checks import engines
from yolact_bench.gpu_checks.inputs import make_images
from yolact_bench.gpu_checks.networks import FLAVOURS, MAX_BATCH, Flavour, flavour, make_engine
from yolact_bench.gpu_checks.stages import unusable
from yolact_runtime import Engine, Result, load_engine
from yolact_runtime.cuda.device import Device
from yolact_runtime.cuda.gpu import current_gpu
from yolact_runtime.engines.tensorrt.record import read_engine

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

IMAGES = make_images(MAX_BATCH - 1)


@pytest.fixture(scope="module", params=FLAVOURS, ids=lambda one: one.name)
def chosen(request: pytest.FixtureRequest) -> Flavour:
    """Each way of running a network whose packages are installed."""
    one: Flavour = request.param
    for package in one.needs:
        pytest.importorskip(package if package != "pycuda" else "pycuda.driver", exc_type=ImportError)
    if skipped := unusable(one):
        pytest.skip(f"{skipped.reason}; {skipped.remedy}")
    return one


@pytest.fixture(scope="module")
def path(chosen: Flavour, networks: Path) -> Path:
    gpu = current_gpu()
    assert gpu is not None
    return make_engine(chosen, networks, capability=gpu.capability)


@pytest.fixture(scope="module")
def opened(chosen: Flavour, path: Path) -> Callable[..., Engine]:
    return functools.partial(load_engine, path, **chosen.options)


@pytest.fixture(scope="module")
def expected(networks: Path) -> list[Result]:
    """Of the CPU."""
    onnx = make_engine(flavour("onnxruntime-cuda-native"), networks)
    with load_engine(onnx, backend="onnxruntime") as engine:
        return engine.predict(IMAGES, engines.THRESHOLD, engines.REFERENCE_TOP_K)


def test_results_are_those_of_the_cpu(opened: Callable[..., Engine], expected: list[Result]) -> None:
    engines.check_results(opened, IMAGES, expected)


def test_graphs_change_nothing(
    chosen: Flavour, opened: Callable[..., Engine], expected: list[Result]
) -> None:
    engines.check_graphs(opened, IMAGES, expected, chosen.repeatable)


def test_streams_change_nothing(chosen: Flavour, opened: Callable[..., Engine]) -> None:
    engines.check_streams(opened, IMAGES, chosen.repeatable, 4)


def test_3000_calls_leave_nothing(opened: Callable[..., Engine]) -> None:
    with Device() as device:
        engines.check_growth(opened, IMAGES[:4], 3_000, engines.device_memory(device))


def test_it_shares_the_gpu_with_torch(opened: Callable[..., Engine], expected: list[Result]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    weights = torch.rand(512, 512, device="cuda")
    product = (weights @ weights).cpu()
    with opened() as engine:
        engines.compare_results(engine.predict(IMAGES, engines.THRESHOLD, engines.TOP_K), expected)
        torch.testing.assert_close((weights @ weights).cpu(), product)
        engines.compare_results(engine.predict(IMAGES, engines.THRESHOLD, engines.TOP_K), expected)
    torch.testing.assert_close((weights @ weights).cpu(), product)


def test_the_record_of_an_engine_names_its_plugins(chosen: Flavour, path: Path) -> None:
    if path.suffix != ".engine":
        pytest.skip("no record")
    metadata, record = read_engine(path)
    assert record.plugin == ("plugin" in chosen.export)
    assert metadata.detect == ("runtime" if chosen.name.endswith("runtime") else "native")
