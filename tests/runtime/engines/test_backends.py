"""The choice of the backend where the user names none."""

import importlib.util
from types import SimpleNamespace

import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import load_engine
from yolact_runtime.engines import choose, cpu, load


@pytest.mark.parametrize(
    ("delivered", "asked", "installed", "bf16_units", "backend"),
    [
        ("fp32", None, True, True, "openvino"),
        ("fp32", None, True, False, "onnxruntime"),
        ("fp32", None, False, True, "onnxruntime"),
        ("fp32", "fp32", True, True, "openvino"),
        ("fp32", "bf16", True, True, "openvino"),
        ("fp32", "bf16", False, False, "openvino"),  # refused there, by name of what is missing
        ("int8", None, True, False, "openvino"),
        ("int8", "int8+bf16", True, True, "openvino"),
        ("int8", None, False, True, "onnxruntime"),
        ("fp16", None, True, True, "openvino"),
        ("fp16", None, True, False, "onnxruntime"),
        ("", None, True, True, "onnxruntime"),  # not one of ours: it says so
    ],
)
def test_the_rule_for_cpus(monkeypatch, delivered, asked, installed, bf16_units, backend):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(choose, "_cpu_has_bf16", lambda: bf16_units)
    chosen, why = choose.choose_for_cpu(delivered, asked)
    assert chosen == backend and why


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ("fpu avx2", []),
        ("fpu avx512f", ["openvino"]),
        ("fpu avx2 avx_ne_convert", ["openvino"]),
        ("", ["openvino"]),
    ],
)
def test_cpus_without_bf16_do_not_load_openvino(monkeypatch, tmp_path, flags, asked):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: avx512f\n")
    monkeypatch.setattr(cpu, "_CPU_INFO", tmp_path / ("cpuinfo" if flags else "none"))
    core, loaded = SimpleNamespace(get_property=lambda *_: ["FP32", "BF16"]), []
    module = SimpleNamespace(shared_core=lambda: loaded.append("openvino") or core)
    monkeypatch.setattr(choose.importlib, "import_module", lambda name: module)
    assert choose._cpu_has_bf16() == bool(asked) and loaded == asked


def test_bf16_is_never_chosen_silently(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    with load_engine(path) as engine:
        assert engine.precision == "fp32"


def test_providers_mean_onnx_runtime(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    with load_engine(path, providers=["cpu"]) as engine:
        assert engine.name == "ONNX Runtime CPU"


def test_cuda_is_tried_first_where_it_may_load(tmp_path, monkeypatch):
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    opened = []
    monkeypatch.setattr(load, "cuda_may_load", lambda: True)
    monkeypatch.setattr(load, "_open", lambda name, *_: opened.append(name))
    assert load.open_exported(path, None, None, {}) == (None, "CUDA loads")
    load.open_exported(path, None, "bf16", {})
    assert opened == ["cuda", "openvino"]
