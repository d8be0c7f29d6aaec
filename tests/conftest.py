"""What all tests share: helpers that can be imported, and optional reference data."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from yolact_runtime.commandline import OWN_LOGGERS
from yolact_runtime.cuda.gpu import current_gpu

HERE = Path(__file__).resolve().parent
if "PYTEST_XDIST_WORKER" in os.environ:
    # The processes of the tests are the parallelism; threads of each would compete with the others.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Each of the hundreds of engines that tests write would be tried in a process of its own.
os.environ.setdefault("YOLACT_TRUST_ENGINES", "1")
# A machine that others use as well makes any single example slow at times.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
# A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# `nohup` does the same to the signal of a closed terminal, which commands then ignore as they should.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# `import oracle` and the others work from every test. With this folder on the path, tests/yolact
# would hide the package.
for _name in (
    "commands",
    "oracle",
    "exact_engine",
    "fake_engine",
    "mask_scenes",
    "fake_onnx",
    "fake_driver",
    "fake_nvml",
    "shared_data",
    "browser",
    "golden",
    "cuda_on_cpu",
    "kernel_heads",
    "kernel_registers",
    "fake_pycuda",
    "fake_tensorrt",
    "fake_gpu",
    "fake_ort_cuda",
    *(["fake_torch_cuda"] if importlib.util.find_spec("torch") else []),
    "device_networks",
    "engine_files",
    "converted",
    "videos",
    "camera_server",
    "rtsp_server",
    "ports",
    "fake_triton",
    "triton_server",
):
    _spec = importlib.util.spec_from_file_location(_name, HERE / f"{_name}.py")
    assert _spec is not None and _spec.loader is not None
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and current_gpu() is None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU, driver or cuda-bindings"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """The processes of xdist send texts only; what a test logs may have a file name that is none."""
    report: Any = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def levels_of_loggers() -> Iterator[None]:
    """A test that runs a command, which sets them, does not decide what the next one logs."""
    loggers = [logging.getLogger(name) for name in OWN_LOGGERS]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `FakeGpu` in place of pycuda, TensorRT and the driver."""
    return sys.modules["fake_gpu"].FakeGpu().install(monkeypatch)


@dataclass(frozen=True)
class CocoMini:
    """A small part of COCO 2017: folders of images and their annotation files."""

    train_images: Path
    train_annotations: Path
    val_images: Path
    val_annotations: Path


def _shared(*parts: str) -> Path:
    path = sys.modules["shared_data"].SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {'/'.join(parts)}: set YOLACT_TEST_SHARED to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def coco_mini() -> CocoMini:
    root = _shared("data", "coco-mini")
    annotations = root / "annotations"
    return CocoMini(
        train_images=root / "train2017",
        train_annotations=annotations / "instances_train2017.json",
        val_images=root / "val2017",
        val_annotations=annotations / "instances_val2017.json",
    )
