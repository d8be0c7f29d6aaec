"""Engines are opened only where their JSON, the file, the library and the GPU fit each other."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from fake_onnx import NATIVE

from yolact_runtime.cuda.gpu import Gpu, current_gpu
from yolact_runtime.engines.tensorrt import open as module
from yolact_runtime.engines.tensorrt import record as record_module
from yolact_runtime.engines.tensorrt.record import (
    EngineRecord,
    read_engine,
    rebuild_command,
    record_path,
    to_json,
)
from yolact_runtime.errors import YolactError
from yolact_runtime.files import sha256, write_json

RECORD = EngineRecord(
    library="tensorrt",
    library_version="10.9.0.34",
    capabilities=("8.6",),
    gpu="NVIDIA RTX A4000",
    cuda="12.8",
    profile=(1, 2, NATIVE.max_batch),
    compute={"fp16": 50, "fp32": 2},
    inspected="engine",
    engine_sha256="",
    engine_bytes=6,
    onnx_file="m.onnx",
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An intact engine with its JSON."""
    path = tmp_path / "m.engine"
    path.write_bytes(b"engine")
    write_json(record_path(path), to_json(NATIVE, replace(engine_sha256=sha256(path))))
    return path


def replace(**changes: object) -> EngineRecord:
    return dataclasses.replace(RECORD, **changes)  # type: ignore[arg-type]


def edit(engine: Path, part: str, **changes: object) -> None:
    value = json.loads(record_path(engine).read_text())
    value[part] |= changes
    write_json(record_path(engine), value)


def test_what_was_written_is_read(engine: Path) -> None:
    metadata, record = read_engine(engine)
    assert metadata == NATIVE
    assert record == replace(engine_sha256=sha256(engine))


def test_an_engine_that_is_not_there_or_cannot_be_read(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, problem in (
        (engine.with_name("none.engine"), "does not exist"),
        (engine.parent, "is a folder"),
    ):
        with pytest.raises(YolactError, match=f"^engine {path} {problem}"):
            read_engine(path)

    def fail(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(record_module, "sha256", fail)
    with pytest.raises(YolactError, match=r"^cannot read engine .*m\.engine: Permission denied$"):
        read_engine(engine)


def test_an_engine_without_its_json_is_not_opened(engine: Path) -> None:
    record_path(engine).unlink()
    with pytest.raises(YolactError, match=r"m\.engine\.json is missing.*yolact-export --weights .*m\.onnx"):
        read_engine(engine)


@pytest.mark.parametrize(
    ("content", "words"), [(b"engin", "engine_bytes is 6 and the file has 5"), (b"Engine", "engine_sha256")]
)
def test_a_changed_file_is_not_opened(engine: Path, content: bytes, words: str) -> None:
    engine.write_bytes(content)
    with pytest.raises(YolactError, match=f"{words}.*build it again: yolact-export"):
        read_engine(engine)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("engine", {"library": "cudnn"}, "library is 'cudnn'"),
        ("engine", {"library_version": "new"}, "library_version"),
        ("engine", {"library_version": "9" * 5000}, "library_version"),
        ("engine", {"onnx_file": "m\0.onnx"}, "onnx_file"),
        ("engine", {"engine_bytes": 10**400}, "not valid JSON"),
        ("engine", {"gpu": "\ud800"}, "not valid JSON"),
        ("metadata", {"max_batch": 1 << 40}, "max_batch"),
        ("engine", {"capabilities": ["86"]}, "capabilities"),
        ("engine", {"profile": [1, 4, 3]}, "profile"),
        ("engine", {"profile": [1, 4]}, "not the metadata of an engine"),
        ("engine", {"engine_sha256": "0"}, "engine_sha256"),
        ("engine", {"engine_bytes": "6"}, "not the metadata of an engine"),
        ("metadata", {"max_batch": 9}, "profile"),
        ("metadata", {"class_names": ["one"]}, "category_ids"),
    ],
)
def test_edited_json_is_refused(engine: Path, part: str, changes: dict, words: str) -> None:
    edit(engine, part, **changes)
    with pytest.raises(YolactError, match=words):
        read_engine(engine)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metadata": 1, "engine": 2}'])
def test_other_json_is_refused(engine: Path, text: str) -> None:
    record_path(engine).write_text(text)
    with pytest.raises(YolactError, match=r"m\.engine\.json is not"):
        read_engine(engine)


@pytest.mark.parametrize(
    ("record", "version", "fits"),
    [
        (RECORD, "10.9.0.34", True),
        (RECORD, "10.9.0.35", False),
        (RECORD, "10.12.0.36", False),
        (replace(version_compatible=True), "10.12.0.36", True),
        (replace(version_compatible=True), "10.8.0.43", False),
        (replace(version_compatible=True), "11.0.0.1", False),
    ],
)
def test_versions_that_run_it(record: EngineRecord, version: str, fits: bool) -> None:
    assert (record.problem_with_library(version) is None) == fits


@pytest.mark.parametrize(
    ("record", "capability", "fits"),
    [
        (RECORD, "8.6", True),
        (RECORD, "8.9", False),
        (replace(hardware_compatible=True), "12.0", True),
        (replace(hardware_compatible=True), "7.5", False),
        (replace(library="tensorrt_rtx", capabilities=()), "12.0", True),
        (replace(library="tensorrt_rtx", capabilities=()), "7.5", False),
        (replace(library="tensorrt_rtx", capabilities=("7.5",)), "7.5", True),
    ],
)
def test_gpus_that_run_it(record: EngineRecord, capability: str, fits: bool) -> None:
    assert (record.problem_with_gpu(capability) is None) == fits


def test_the_command_that_builds_it_again() -> None:
    rtx = replace(library="tensorrt_rtx", workspace_mib=512, tf32=True)
    assert rebuild_command("a/m.engine", rtx, "8.9") == (
        "yolact-export --weights a/m.onnx --to trt --backend rtx --device-capability 8.9 --opt-batch 2"
        " --workspace 512 --tf32 --output a/m.engine"
    )
    assert "--device-capability" not in rebuild_command("m.engine", RECORD, "8.9")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with TensorRT and a GPU, both to be changed by the test."""
    library = ModuleType("tensorrt")
    library.__version__ = "10.9.0.34"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    here = SimpleNamespace(library=library, gpu=Gpu("NVIDIA RTX A4000", "8.6", "12.8"))
    monkeypatch.setattr(module, "current_gpu", lambda: here.gpu)
    return here


def test_what_passes_every_check_is_opened(
    engine: Path, machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr(module, "TensorRtNetwork", lambda *arguments: arguments)
    monkeypatch.setattr(module, "DeviceEngine", lambda *arguments: opened.append(arguments))
    module.open_engine(engine, streams=3)
    network = (engine, NATIVE, read_engine(engine)[1], machine.library)
    assert opened == [(engine, NATIVE, network, 3, True)]


def test_another_version_is_refused(engine: Path, machine: SimpleNamespace) -> None:
    machine.library.__version__ = "8.6.1"
    with pytest.raises(YolactError, match=r"library_version is 10\.9\.0\.34 and TensorRT 8\.6\.1.*--to trt"):
        module.open_engine(engine)


def test_another_gpu_is_refused(engine: Path, machine: SimpleNamespace) -> None:
    machine.gpu = Gpu("NVIDIA GeForce GTX 1080 Ti", "6.1", "12.8")
    with pytest.raises(YolactError, match=r"capabilities is 8\.6 and this GPU has 6\.1 \(NVIDIA GeForce"):
        module.open_engine(engine)


def test_no_gpu(engine: Path, machine: SimpleNamespace) -> None:
    machine.gpu = None
    with pytest.raises(YolactError, match=r"need an NVIDIA GPU.*use --engine .*m\.onnx"):
        module.open_engine(engine)


def test_no_library(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(YolactError, match=r'built by TensorRT 10\.9.*pip install "yolact\[trt\]"'):
        module.open_engine(engine)


class Driver(SimpleNamespace):
    """The calls of cuda.bindings.driver that are used, on a machine with one GPU."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    )
    status = 0

    def cuInit(self, flags: int) -> tuple[int]:  # noqa: N802
        return (self.status,)

    def cuDeviceGet(self, index: int) -> tuple[int, int]:  # noqa: N802
        return 0, 7

    def cuDeviceGetAttribute(self, attribute: str, device: int) -> tuple[int, int]:  # noqa: N802
        assert device == 7
        return 0, {"major": 8, "minor": 6}[attribute]

    def cuDeviceGetName(self, length: int, device: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"NVIDIA RTX A4000".ljust(length, b"\0")

    def cuDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, 12080


def test_the_gpu_as_the_driver_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    bindings = ModuleType("cuda.bindings")
    bindings.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    assert current_gpu() == Gpu("NVIDIA RTX A4000", "8.6", "12.8")
    driver.status = 100
    assert current_gpu() is None
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert current_gpu() is None
