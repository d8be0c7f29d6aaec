"""The GPU's stages of the doctor on a fake GPU: verdicts, reasons and remedies."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import cuda_on_cpu
import pytest
from engine_files import engine_of
from fake_gpu import FakeGpu
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_bench.doctor import speed
from yolact_bench.doctor.stage import FAILED, GPU, OK, SKIPPED, Context, Outcome, Stage
from yolact_bench.gpu_checks import engines, kernels
from yolact_bench.gpu_checks import stages as module
from yolact_bench.gpu_checks.kernels import SMALL
from yolact_bench.gpu_checks.networks import FLAVOURS, MAX_BATCH
from yolact_bench.gpu_checks.stages import gpu_stages
from yolact_bench.roofline.ceilings import Ceilings
from yolact_bench.roofline.graph import Reached
from yolact_runtime.cuda import nvrtc
from yolact_runtime.errors import YolactError
from yolact_runtime.packages import PACKAGES

ENGINES = (replace(NATIVE, max_batch=MAX_BATCH), native_arrays())


class Compiler(str):
    """What the fake GPU takes as a compiler, with what a report says of it."""

    version = (12, 9)
    include = ""


@pytest.fixture
def stages(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Stage]:
    """By name; networks are exported and built already, and inputs are small."""
    monkeypatch.setattr(nvrtc, "choose", lambda *arguments, **options: Compiler("nvrtc"))
    for place, name, value in (
        (kernels, "Sizes", lambda: SMALL), (kernels, "BATCHES", (1, 2)), (module, "QUICK_CALLS", 50),
        (engines, "CALLS_PER_THREAD", 3), (speed, "IMAGE", (24, 32)), (speed, "STAGE_RUNS", 3),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, value)
    metadata, arrays = ENGINES
    for config in ("yolact_tiny", "yolact_resnet50"):
        (tmp_path / f"{config}_0_1.pth").touch()
        for name in ("onnxruntime-cuda-native", "tensorrt-native", "tensorrt-runtime--precisionfp16"):
            onnx = write_onnx(tmp_path / f"{config}-{name}.onnx", arrays, metadata)
            if name.startswith("tensorrt"):
                engine_of(onnx, metadata)
    return {stage.name: stage for stage in gpu_stages(Context(tmp_path))}


def run(stages: dict[str, Stage], name: str, folder: Path, **options: object) -> Outcome:
    """Run a stage as a child process would: from its pickle."""
    stage = pickle.loads(pickle.dumps(stages[name]))
    return stage.run(Context(folder, seconds=0.05, **options))


def test_names_and_needs(stages: dict[str, Stage]) -> None:
    assert len(stages) == 5 + len(FLAVOURS) + 1 + 4
    for stage in stages.values():
        assert GPU in stage.needs and set(stage.needs) - {GPU, "sympy"} <= set(PACKAGES)
        assert stage.text and stage.group in ("kernels", "gpu-engines", "gpu-speed")
        assert stage.group != "gpu-engines" or "onnxruntime" in stage.needs  # the reference


def test_right_kernels(stages: dict[str, Stage], tmp_path: Path) -> None:
    outcome = run(stages, "kernels-detection", tmp_path)
    assert (outcome.state, outcome.reason) == (OK, "")
    assert outcome.figures["compute capability"] == "8.6" and outcome.figures["cases"] == 8
    assert float(outcome.figures["score error"]) < 1e-5


def test_a_wrong_kernel(stages: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = cuda_on_cpu._library
    text = (cuda_on_cpu.SOURCE_FOLDER / "detect.cu").read_text()
    wrong = text.replace("kSizeVariance = 0.2f", "kSizeVariance = 0.201f")
    assert wrong != text
    monkeypatch.setattr(
        cuda_on_cpu, "_library", lambda source, kernels, given: library(source, kernels, wrong)
    )
    outcome = run(stages, "kernels-detection", tmp_path)
    assert outcome.state == FAILED
    assert outcome.reason.startswith("kernel detection, batch 1, float32: ")
    assert "attach the report" in outcome.remedy


def test_no_compiler(stages: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(*arguments: object, **options: object) -> None:
        raise YolactError("NVRTC is not installed; run: pip install -U nvidia-cuda-nvrtc")

    monkeypatch.setattr(nvrtc, "choose", choose)
    outcome = run(stages, "kernels-masks", tmp_path)
    assert outcome == Outcome(SKIPPED, {}, "NVRTC is not installed", "run: pip install -U nvidia-cuda-nvrtc")


def test_an_engine(stages: dict[str, Stage], tmp_path: Path, gpu: FakeGpu) -> None:
    outcome = run(stages, "gpu-tensorrt-native", tmp_path, quick=True)
    assert (outcome.state, outcome.reason) == (OK, "")
    figures = outcome.figures
    assert (figures["graphs"], figures["streams"], figures["calls"]) == ("equal", 3, 50)
    assert not gpu.held and not gpu.problems


@pytest.mark.slow
def test_an_engine_that_loses_memory(
    stages: dict[str, Stage], tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter(range(2**40, 0, -(2**23)))
    monkeypatch.setattr(gpu.driver, "cuMemGetInfo", lambda: (0, next(free)))
    outcome = run(stages, "gpu-tensorrt-native", tmp_path, quick=True)
    assert outcome.state == FAILED
    assert "device growth bytes over 50 calls" in outcome.reason
    assert outcome.figures["graphs"] == "equal"  # what was found until then


def test_libraries_without_cuda(
    stages: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime
    import torch

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    outcome = run(stages, "gpu-onnxruntime-cuda-native", tmp_path)
    assert outcome.state == SKIPPED and "pip install onnxruntime-gpu" in outcome.remedy
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = run(stages, "gpu-pytorch-cuda", tmp_path)
    assert outcome.state == SKIPPED and "finds no GPU" in outcome.reason
    # A TensorRT older than its plugins; the fake has none either.
    outcome = run(stages, "gpu-tensorrt-plugin", tmp_path)
    assert outcome.state == SKIPPED and "no ahead-of-time plugins" in outcome.reason
    assert outcome.remedy.startswith("use --detect runtime")


class Counted:
    """A graph that takes 2 ms at least."""

    def reached(self, limits: Ceilings, measured_ms: float, precision: str) -> Reached:
        return Reached(1.0, 2.0, 2.0, 3.0, measured_ms, 2.0 / measured_ms, 3.0 / measured_ms)


def test_speed(
    stages: dict[str, Stage], tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_countable", lambda folder, onnx, batch: Counted())
    gpu.computes = False
    outcome = run(stages, "gpu-ceilings", tmp_path)
    assert outcome.state == OK
    # The fake's clock: each copy takes 2 ms.
    assert outcome.figures["copy GB/s"] == pytest.approx(2 * 256 * 2**20 / 0.002 / 1e9)
    assert outcome.figures["upload GB/s"] == pytest.approx(64 * 2**20 / 0.002 / 1e9)
    gpu.computes = True
    file = tmp_path / "gpu-ceilings.json"
    measured = json.loads(file.read_text())
    measured["ceilings"]["operations"] = {"float32": 1e12}  # which PyTorch measures on a GPU
    file.write_text(json.dumps(measured))
    outcome = run(stages, "gpu-speed-tensorrt", tmp_path)
    assert (outcome.state, outcome.reason) == (OK, "")
    for batch in (1, 8):
        assert outcome.figures[f"batch {batch} images/s"] == pytest.approx(
            1000 * batch / float(outcome.figures[f"batch {batch} ms"])
        )
        network = float(outcome.figures[f"batch {batch} network ms"])
        assert outcome.figures[f"batch {batch} share of the roofline"] == 2 / network
        for stage in ("upload", "preprocess", "network", "download"):
            assert float(outcome.figures[f"batch {batch} {stage} floor ms"]) > 0
    # 8 images in bytes, over the bus of the fake.
    floor = 1000 * 8 * 24 * 32 * 3 / (64 * 2**20 / 0.002)
    assert outcome.figures["batch 8 upload floor ms"] == pytest.approx(floor)
