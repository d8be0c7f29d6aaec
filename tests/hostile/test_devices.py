"""GPUs that are missing, too old, too small, of another kind or lost: one line names problem and remedy."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_files import engine_of, write_engine
from fake_driver import CUresult
from fake_gpu import FakeGpu
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import YolactError, load_engine
from yolact_runtime.cuda import launch
from yolact_runtime.engines.tensorrt.record import record_path
from yolact_runtime.errors import DeviceError, UsageError

IMAGE = np.full((20, 30, 3), 255, np.uint8)
INSTEAD = r"or use --engine \S*m\.onnx$"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path, native_arrays(), NATIVE)


def refused(engine: Path, words: str, kind: type[YolactError] = YolactError) -> str:
    """The message of the error that opening it raises, which is one line."""
    with pytest.raises(kind, match=words) as raised:
        load_engine(engine)
    text = str(raised.value)
    assert "\n" not in text and "m.engine" in text
    return text


def test_no_memory_for_the_buffers(gpu: FakeGpu, engine: Path) -> None:
    gpu.fail_when = lambda name: name == "cuMemAlloc"
    refused(
        engine,
        r"failed at buffer images \(2,304 bytes\) in cuMemAlloc: out of memory; free memory on the GPU, or"
        rf" use fewer streams or a smaller batch; {INSTEAD}",
        DeviceError,
    )
    assert not gpu.held


def test_no_pinned_memory(gpu: FakeGpu, engine: Path) -> None:
    gpu.fail_when = lambda name: name == "cuMemHostAlloc"
    refused(engine, r"pinned buffer header \(1,024 bytes\) in cuMemHostAlloc: out of memory", DeviceError)
    assert not gpu.held


def test_no_memory_while_it_runs(gpu: FakeGpu, engine: Path) -> None:
    with load_engine(engine) as opened:
        gpu.fail_when = lambda name: name == "execute_async_v3"
        with pytest.raises(
            DeviceError,
            match=r"m\.engine: TensorRT 10\.9\S* failed at batch 1 in execute_async_v3: Cuda Runtime \(out of"
            r" memory\); free memory on the GPU",
        ):
            opened.predict([IMAGE])
        gpu.fail_when = lambda name: False
        assert len(opened.predict([IMAGE])[0]) == 2
    assert not gpu.held


def test_no_gpu(gpu: FakeGpu, engine: Path) -> None:
    gpu.fail_when = lambda name: name == "cuInit"
    refused(engine, rf"engines need an NVIDIA GPU with its driver, and this machine has none; {INSTEAD}")


def test_a_driver_older_than_the_library(gpu: FakeGpu, engine: Path) -> None:
    gpu.fail_when = lambda name: name == "Runtime"
    refused(
        engine,
        r"TensorRT 10\.9\S* failed in Runtime: CUDA initialization failure with error: 35; the driver is"
        rf" older than the library: update the driver; {INSTEAD}",
        DeviceError,
    )
    assert not gpu.held


def test_no_library(gpu: FakeGpu, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refused(engine, rf'\(no module \'tensorrt\'\) needs .* pip install "yolact\[trt\]", {INSTEAD}')


def shadow(monkeypatch: pytest.MonkeyPatch, folder: Path, package: str, **modules: str) -> None:
    """Put a package of these modules before all others."""
    place = folder / "path" / package
    place.mkdir(parents=True)
    for name, text in modules.items():
        (place / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(place.parent))
    for name in (package, *(f"{package}.{module}" for module in modules)):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_library_without_its_shared_libraries(
    gpu: FakeGpu, engine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = "raise ImportError('libnvinfer.so.10: cannot open shared object file')"
    shadow(monkeypatch, tmp_path, "tensorrt", __init__=missing)
    refused(engine, rf"TensorRT does not load: libnvinfer\.so\.10: .*; {INSTEAD}")


def test_no_bindings(gpu: FakeGpu, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    refused(engine, rf"\(no module 'cuda\.bindings'\) needs .*, {INSTEAD}")


def test_no_pycuda(gpu: FakeGpu, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    refused(
        engine,
        r"needs pycuda \(no module 'pycuda\S*'\), which pip builds from source with the CUDA toolkit: pip"
        rf' install "yolact\[cuda\]"; {INSTEAD}',
    )


def test_pycuda_for_another_driver(
    gpu: FakeGpu, engine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = "raise ImportError('libcuda.so.1: undefined symbol: cuCtxCreate_v4')"
    shadow(monkeypatch, tmp_path, "pycuda", __init__="", driver=missing)
    refused(
        engine, rf"pycuda does not load: libcuda\.so\.1: .* toolkit: pip install .*; {INSTEAD}", DeviceError
    )


def test_no_compiler_for_the_kernels(gpu: FakeGpu, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(capability: object, newest_major: int) -> str:
        raise YolactError("no NVRTC for compute capability 8.6 is installed")

    monkeypatch.setattr(launch.nvrtc, "choose", none)
    refused(engine, rf"no NVRTC for compute capability 8\.6 is installed; {INSTEAD}")
    assert not gpu.held


def test_another_kind_of_gpu(gpu: FakeGpu, engine: Path) -> None:
    beside = record_path(engine)
    value = json.loads(beside.read_text())
    value["engine"]["capabilities"] = ["6.1"]
    beside.write_text(json.dumps(value))
    refused(
        engine, r"capabilities is 6\.1 and this GPU has 8\.6 \(NVIDIA RTX A4000\); build it again: yolact-"
    )


def test_an_engine_that_the_library_cannot_read(gpu: FakeGpu, engine: Path) -> None:
    gpu.fail_when = lambda name: name == "deserialize_cuda_engine"
    refused(engine, r"in deserialize_cuda_engine: Magic tag does not match", DeviceError)
    assert not gpu.held


def test_outputs_that_are_not_those_of_the_metadata(gpu: FakeGpu, tmp_path: Path) -> None:
    arrays = native_arrays()
    arrays["boxes"] = np.zeros((1, 5, 4), np.float32)
    engine = write_engine(tmp_path, arrays, NATIVE)
    refused(engine, r"its boxes is \(5, 4\) for each image, its metadata says 4 x 4; export it again")
    assert not gpu.held


@pytest.mark.parametrize("size", [(16, 32), (32, 16)])
def test_an_input_of_another_size(size: tuple[int, int], gpu: FakeGpu, tmp_path: Path) -> None:
    engine = engine_of(
        write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE), replace(NATIVE, input_size=size)
    )
    wanted = rf"{size[0]} x {size[1]} x 3"
    refused(
        engine, rf"its images is \(16, 16, 3\) for each image, its metadata says {wanted}; export it again"
    )
    assert not gpu.held


@pytest.mark.parametrize("when", ["cuStreamSynchronize", "cuMemcpyHtoDAsync", "cuGraphLaunch"])
def test_a_gpu_that_is_lost_while_it_runs(
    when: str, gpu: FakeGpu, engine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = load_engine(engine)
    for _ in range(3):
        opened.predict([IMAGE])
    gpu.error = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS

    def lost(name: str) -> bool:
        gpu.broken = gpu.broken or name == when
        return gpu.broken

    gpu.fail_when = lost
    with pytest.raises(
        DeviceError, match=rf"in {when}: .*the GPU's context is lost: start the process again"
    ):
        opened.predict([IMAGE])
    with pytest.raises(DeviceError, match="the GPU's context is lost"):
        opened.predict([IMAGE])
    with caplog.at_level(logging.WARNING):
        opened.close()
    with pytest.raises(YolactError, match="is closed"):
        opened.predict([IMAGE])


def test_options_that_it_does_not_have(gpu: FakeGpu, engine: Path) -> None:
    with pytest.raises(UsageError, match=r"'threads' does not apply to .*; it takes streams, graphs"):
        load_engine(engine, threads=2)
