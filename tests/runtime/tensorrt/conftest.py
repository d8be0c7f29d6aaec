"""Engines whose file is an ONNX file, on a GPU without hardware."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_gpu import FakeGpu
from fake_onnx import write_onnx

from yolact_runtime.engine_record import EngineRecord, record_path, to_json
from yolact_runtime.files import sha256, write_json
from yolact_runtime.metadata import Metadata

RECORD = EngineRecord(
    library="tensorrt",
    library_version="10.9.0.34",
    capabilities=("8.6",),
    gpu="NVIDIA RTX A4000",
    cuda="12.8",
    profile=(1, 1, 1),
    compute={"fp32": 1},
    inspected="engine",
    engine_sha256="",
    engine_bytes=0,
    onnx_file="m.onnx",
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu().install(monkeypatch)
    fake.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 8
    return fake


@pytest.fixture
def make_engine(tmp_path: Path) -> Callable[..., Path]:
    """Writes m.onnx, and the same as m.engine with its JSON."""

    def make(arrays: dict, metadata: Metadata, **changes: object) -> Path:
        onnx_file = write_onnx(tmp_path / "m.onnx", arrays, metadata)
        path = tmp_path / "m.engine"
        path.write_bytes(onnx_file.read_bytes())
        record = replace(
            RECORD,
            profile=(metadata.min_batch, metadata.max_batch, metadata.max_batch),
            engine_sha256=sha256(path),
            engine_bytes=path.stat().st_size,
            **changes,  # type: ignore[arg-type]
        )
        write_json(record_path(path), to_json(metadata, record))
        return path

    return make
