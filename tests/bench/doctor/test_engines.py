"""The engines on the small network, right and wrong, and the measurements, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolact_bench.doctor import network, speed
from yolact_bench.doctor.engines import engine_stages
from yolact_bench.doctor.speed import speed_stages
from yolact_bench.doctor.stage import FAILED, OK, SKIPPED, Context, Outcome
from yolact_bench.roofline import ceilings as measured


def run(name: str, folder: Path, **settings) -> Outcome:
    """Run a stage in this process."""
    (stage,) = [one for one in (*engine_stages(), *speed_stages()) if one.name == name]
    return stage.run(Context(folder, **settings))


@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32", "openvino-bf16"])
def test_engines_find_what_is_stored(name: str, tmp_path: Path) -> None:
    if name.startswith("openvino"):
        pytest.importorskip("openvino")
    done = run(name, tmp_path)
    if done.state == SKIPPED and name.endswith("bf16"):
        pytest.skip(done.reason)
    assert done.state == OK, done
    assert done.figures["computes in"] == name.rpartition("-")[2]
    found, stored = done.figures["matched"], done.figures["detections"]
    # bf16 is rounded differently with AVX-512 and with AMX, so a detection near a threshold may be missing.
    assert stored > 30 and (found >= 0.9 * stored if name.endswith("bf16") else found == stored)


def test_an_engine_that_computes_something_else_fails(tmp_path: Path, monkeypatch) -> None:
    """One wrong weight tensor in the file stands for a library with a wrong convolution."""
    weights = network.weights
    name = "proto_net.8.weight"
    monkeypatch.setattr(
        network, "weights", lambda given, shape: weights(given, shape) * (0.5 if given == name else 1)
    )
    done = run("onnxruntime-fp32", tmp_path)
    assert done.state == FAILED and done.reason.startswith("native: ") and done.remedy


@pytest.mark.slow
def test_the_speed_of_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "onnx", "sympy", "psutil"):
        pytest.importorskip(package)
    monkeypatch.setattr(speed, "BATCHES", (1,))
    # The files that an export would have written.
    network.write_onnx_file(tmp_path / "yolact_tiny-onnxruntime-cuda-native--no-verify.onnx")
    (tmp_path / "yolact_tiny_0_1.pth").touch()
    limits = measured.Ceilings("CPU", 1, {"float32": 1e15}, {}, 1e15, "2026-01-01T00:00:00+00:00")
    monkeypatch.setattr(measured, "ceilings", lambda *given, **options: limits)
    done = run("speed-onnxruntime", tmp_path, config="yolact_tiny", seconds=0.05)
    assert done.state == OK, done
    assert done.figures["batch 1 images/s"] > 0
    # With ceilings that no machine has, the floors are short, and so is their share.
    assert 0 < done.figures["batch 1 floor ms"] < 0.001 * done.figures["batch 1 ms"]
    assert done.figures["batch 1 share of the roofline"] == 0.0
    for stage in ("decode", "preprocess", "network", "masks", "rle"):
        assert done.figures[f"{stage} ms"] >= 0
    for stage in ("preprocess", "network", "masks", "rle"):
        assert done.figures[f"{stage} floor ms"] <= done.figures[f"{stage} ms"]


def test_a_slow_machine_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of one call decides, before warming up."""
    file = network.write_onnx_file(tmp_path / "network.onnx", "native")
    monkeypatch.setattr(speed, "configured_files", lambda context: (file, file))
    monkeypatch.setattr(speed, "_MOST", 0.0)
    monkeypatch.setattr(speed, "_measure_batch", pytest.fail)
    done = run("speed-onnxruntime", tmp_path)
    assert done.state == SKIPPED and done.reason.startswith("too slow to measure here: ")
    assert "--config" in done.remedy
