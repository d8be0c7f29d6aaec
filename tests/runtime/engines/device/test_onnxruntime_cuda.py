"""The GPU without TensorRT: ONNX Runtime's CUDA provider between the kernels, on fakes of both."""

from __future__ import annotations

import logging
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from device_networks import ENGINES, assert_same, images
from fake_driver import CUresult
from fake_gpu import FakeGpu
from fake_onnx import NATIVE, RUNTIME, native_arrays, runtime_arrays, write_onnx
from fake_ort_cuda import install_cuda_provider

from yolact_runtime import load_engine
from yolact_runtime.cuda import launch
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.engines.onnxruntime_cuda import open_on_cuda
from yolact_runtime.errors import DeviceError, UsageError, YolactError

IMAGE = np.full((20, 30, 3), 255, np.uint8)
BEFORE, DETECTION, MASKS = ["upload", "resize"], [
    "filter_scores", "list_candidates", "wanted_class_nms", "keep_best",
], ["count_visible", "assemble_masks", "mask_bits", "count_edges", "write_edges", "download"]  # fmt: skip
ON_HOST = "detection and masks are computed on the CPU"


@pytest.fixture
def opened(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of each session that has a stream."""
    return install_cuda_provider(gpu, monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)


@pytest.mark.parametrize("kind", ENGINES)
def test_results_equal_those_of_the_cpu(kind: str, gpu: FakeGpu, opened: list[Any], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", *ENGINES[kind])
    some = images()
    with OnnxRuntimeEngine(path) as reference, open_on_cuda(path) as engine:
        assert (engine.name, engine.precision) == ("ONNX Runtime CUDA", "fp32")
        for n in (1, 3, 3, 3, 4):
            assert_same(engine.predict(some[:n], 0.2), reference.predict(some[:n], 0.2))
        assert_same(engine.predict(some, 0.0, 3, ["dog"]), reference.predict(some, 0.0, 3, ["dog"]))
    assert len(opened) == 1
    assert not gpu.held and not gpu.problems


def test_only_what_is_around_the_network_is_captured(gpu: FakeGpu, opened: list[Any], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", runtime_arrays(), RUNTIME)
    with open_on_cuda(path) as engine:
        gpu.ran.clear()  # of the upload of the priors
        engine.predict([IMAGE])
        first, gpu.ran = gpu.ran, []
        engine.predict([IMAGE])
        (stream,) = {stream for stream, _ in first + gpu.ran}
        assert opened[0]["user_compute_stream"] == str(stream)
        assert [name for _, name in first] == ["upload", *BEFORE, "network", *DETECTION, *MASKS, "download"]
        graph = [f"graph: {name}" for name in BEFORE], [f"graph: {name}" for name in DETECTION + MASKS]
        assert [name for _, name in gpu.ran] == ["upload", *graph[0], "network", *graph[1], "download"]
        for _ in range(3):
            engine.predict([IMAGE])
        assert gpu.names.count("cuGraphInstantiate") == 2
        assert engine.stage_times([IMAGE])["network"] > 0  # type: ignore[attr-defined]
    assert not gpu.held and not gpu.problems


def test_four_threads_on_two_slots_share_nothing(gpu: FakeGpu, opened: list[Any], file: Path) -> None:
    some = images()
    with OnnxRuntimeEngine(file) as reference, open_on_cuda(file, streams=2) as engine:
        assert engine.streams == 2
        expected = [reference.predict([image]) for image in some]
        failures: list[BaseException] = []

        def work(index: int) -> None:
            try:
                for _ in range(5):
                    assert_same(engine.predict([some[index]]), expected[index])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
    assert len({options["user_compute_stream"] for options in opened}) == 2
    assert not gpu.held and not gpu.problems


def test_options_of_load_engine(gpu: FakeGpu, opened: list[Any], file: Path) -> None:
    with load_engine(file, backend="cuda", streams="auto", graphs=False) as engine:
        assert engine.streams == 2
        assert [options["use_tf32"] for options in opened] == ["0", "0"]
        for _ in range(3):
            assert len(engine.predict([IMAGE])[0]) == 2
    assert "cuStreamBeginCapture" not in gpu.names
    for streams in (0, 9):
        with pytest.raises(UsageError, match="streams is"):
            open_on_cuda(file, streams=streams)
    assert not gpu.held and not gpu.problems


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("cuda.bindings", r'no module .cuda.*pip install "yolact\[cuda\]"'),
        ("pycuda.driver", r'needs pycuda .*pip install "yolact\[cuda\]"'),
    ],
)
def test_without_packages_the_cpu_detects_and_says_so(
    missing: str, words: str, gpu: FakeGpu, opened: list[Any], file: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, missing, None)
    with caplog.at_level(logging.WARNING), open_on_cuda(file) as engine:
        assert isinstance(engine, OnnxRuntimeEngine) and engine.name == "ONNX Runtime CUDA"
        assert len(engine.predict([IMAGE])[0]) == 2
    (record,) = caplog.records
    assert ON_HOST in record.message
    assert re.search(words, record.message), record.message
    assert not opened


def test_without_a_compiler_and_on_another_gpu_the_cpu_detects(
    gpu: FakeGpu, opened: list[Any], file: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.WARNING), open_on_cuda(file, ["cuda:1"]) as engine:
        assert isinstance(engine, OnnxRuntimeEngine)
    assert "CUDA_VISIBLE_DEVICES=1" in caplog.text

    def choose(*_: object, **__: object) -> str:
        raise YolactError("there is no NVRTC; run: pip install nvidia-cuda-nvrtc-cu12")

    monkeypatch.setattr(launch.nvrtc, "choose", choose)
    with caplog.at_level(logging.WARNING), open_on_cuda(file) as engine:
        assert isinstance(engine, OnnxRuntimeEngine)
        assert len(engine.predict([IMAGE])[0]) == 2
    assert f"{ON_HOST}: there is no NVRTC" in caplog.text
    assert not gpu.held and not gpu.problems


def use(path: Path) -> int:
    """Plain, captured and replayed calls, with larger buffers, and only detections."""
    with open_on_cuda(path) as engine:
        found = [len(engine.predict([IMAGE])[0]) for _ in range(3)]
        found += [len(engine.predict([np.full((30, 700, 3), 255, np.uint8)])[0])]
        found += [int(engine.detect(np.full((1, 16, 16, 3), 255, np.uint8)).count[0])]
        return sum(found)


def test_every_call_to_onnx_runtime_may_fail(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = FakeGpu().install(monkeypatch)
    install_cuda_provider(whole, monkeypatch)
    expected = use(file)
    calls = {"InferenceSession", "io_binding", "run_with_iobinding"}
    places = [(i, name) for i, name in enumerate(whole.names) if name in calls]
    assert {name for _, name in places} == calls
    kept: list[BaseException] = []  # tracebacks must not keep what is released
    for index, name in places:
        gpu = FakeGpu().install(monkeypatch)
        install_cuda_provider(gpu, monkeypatch)
        gpu.fail_at, gpu.error = index, CUresult.CUDA_ERROR_OUT_OF_MEMORY
        with pytest.raises(
            YolactError, match=r"m\.onnx: ONNX Runtime.*(out of memory|Failed to bind)"
        ) as raised:
            assert use(file) == expected
        assert "\n" not in str(raised.value)
        kept.append(raised.value)
        first_session = name == "InferenceSession" and index == places[0][0]
        assert isinstance(raised.value, DeviceError) or first_session
        assert not gpu.held and not gpu.problems, (name, gpu.held, gpu.problems)


def test_an_engine_goes_on_after_an_error(gpu: FakeGpu, opened: list[Any], file: Path) -> None:
    with open_on_cuda(file) as engine:
        for name in ("run_with_iobinding", "cuGraphLaunch", "cuStreamSynchronize"):
            for _ in range(2):
                engine.predict([IMAGE])
            gpu.fail_when = lambda called, name=name: called == name
            with pytest.raises(DeviceError, match=name):
                engine.predict([IMAGE])
            gpu.fail_when = lambda called: False
            assert len(engine.predict([IMAGE])[0]) == 2
    with pytest.raises(YolactError, match="is closed"):
        engine.predict([IMAGE])
    assert not gpu.held and not gpu.problems


def test_half_precision_is_reported(gpu: FakeGpu, opened: list[Any], tmp_path: Path) -> None:
    """The fake file has no convolutions, so what it computes in is not known, and why is said."""
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), replace(NATIVE, precision="fp16"))
    with open_on_cuda(path) as engine:
        assert engine.precision == "unknown" and "no convolutions" in engine.unknown_because
    assert onnxruntime.get_available_providers()[0] == "CUDAExecutionProvider"
