"""Files are opened and run in a child process before they are opened here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx
from onnx import numpy_helper

from yolact_runtime import YolactError, load_engine
from yolact_runtime.engines import trial
from yolact_runtime.engines.trial import remember, try_engine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("YOLACT_TRUST_ENGINES")
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)


def fails(message: str, path: Path, backend: str = "onnxruntime") -> None:
    with pytest.raises(YolactError, match=message) as raised:
        load_engine(path, backend=backend)
    assert "\n" not in str(raised.value)


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise AssertionError("it is tried")

    monkeypatch.setattr(subprocess, "Popen", fail)


def test_a_file_is_tried_once(model: Path, request: pytest.FixtureRequest) -> None:
    load_engine(model, backend="onnxruntime").close()
    request.getfixturevalue("no_child")
    load_engine(model, backend="onnxruntime").close()
    with pytest.raises(AssertionError, match="it is tried"):
        load_engine(write_onnx(model, native_arrays(), NATIVE, props={"other": ""}), backend="onnxruntime")


def test_what_others_may_have_written_does_not_count(
    model: Path, cache: Path, request: pytest.FixtureRequest
) -> None:
    remember(model)
    request.getfixturevalue("no_child")
    load_engine(model, backend="onnxruntime").close()
    (cache / "engines").chmod(0o777)
    with pytest.raises(AssertionError, match="it is tried"):
        load_engine(model, backend="onnxruntime")


def test_files_of_ones_own(model: Path, no_child: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_TRUST_ENGINES", "1")
    load_engine(model, backend="onnxruntime").close()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"crashes on it \(signal 11, SIGSEGV\), with 2,048 MiB"),
        ("import os; os._exit(3)", r"crashes on it \(exit code 3\)"),
        ("import time; time.sleep(60)", "more seconds to open .* than the 1 allowed"),
        ("import os; os.kill(os.getpid(), 24)", "more seconds to open .* than the 1 allowed"),
    ],
    ids=["signal", "exit code", "hang", "computing"],
)
def test_a_library_that_does_not_survive_it(
    model: Path, code: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "module_command", lambda *words: [sys.executable, "-c", code])
    monkeypatch.setattr(trial, "_WAIT", 1)
    monkeypatch.setenv("YOLACT_MAX_ENGINE_SECONDS", "1")
    fails(rf"^{model}: ONNX Runtime .*{message}", model)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_memory_is_limited(model: Path, backend: str) -> None:
    """A constant says how large an output is, so that nothing in the file is."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    graph = onnx.load(model)
    shape = next(tensor for tensor in graph.graph.initializer if tensor.name == "prototypes_rest")
    value = native_arrays()["prototypes"]
    shape.CopyFrom(numpy_helper.from_array(np.array([1 << 16, *value.shape[1:]]), shape.name))
    data = next(tensor for tensor in graph.graph.initializer if tensor.name == "prototypes_value")
    data.CopyFrom(numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), data.name))
    shape.CopyFrom(numpy_helper.from_array(np.array([1 << 14, 1 << 14, 2]), shape.name))
    del graph.graph.output[-1].type.tensor_type.shape.dim[:]
    onnx.save(graph, model)
    fails("needs more than 2,048 MiB of memory|crashes on it .*2,048 MiB|ran out of memory", model, backend)


def test_the_error_is_that_of_opening_it(model: Path) -> None:
    write_onnx(model, native_arrays(), NATIVE, props={})
    fails(rf"^{model}: metadata field yolact\.config is missing", model)


def test_modules_in_the_current_folder_are_not_imported(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    try_engine(model, "onnxruntime")


def test_files_that_would_be_hashed_for_minutes(model: Path, tmp_path: Path, no_child: None) -> None:
    path = tmp_path / "m.xml"
    path.write_text("<net/>")
    with path.with_suffix(".bin").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(YolactError, match="bytes, more than the 4,294,967,296 allowed"):
        try_engine(path, "openvino")
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(YolactError, match=r"m\.xml has more bytes than"):
        try_engine(path, "openvino")


def test_inferring_shapes_is_tried(model: Path) -> None:
    """Values that nothing uses: ONNX Runtime drops them, but the onnx package computes them."""
    trial.try_engine(model, trial.SHAPES)
    graph = onnx.load(model)
    graph.graph.initializer.append(numpy_helper.from_array(np.arange(8), "double0"))
    for index in range(32):
        names = [f"double{index}"] * 2, [f"double{index + 1}"]
        graph.graph.node.append(onnx.helper.make_node("Concat", *names, axis=0))
    onnx.save(graph, model)
    with pytest.raises(YolactError, match=r"onnx needs more than 2,048 MiB of memory|crashes on it"):
        trial.try_engine(model, trial.SHAPES)
