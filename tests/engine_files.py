"""Engine files that `fake_gpu` runs: ONNX files with the JSON of an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from fake_onnx import write_onnx

from yolact_runtime.engines.tensorrt.record import EngineRecord, record_path, to_json
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


def write_engine(folder: Path, arrays: dict[str, np.ndarray], metadata: Metadata, **changes: object) -> Path:
    """Write m.onnx, and the same as m.engine with its JSON; `changes` are those of its record."""
    return engine_of(write_onnx(folder / "m.onnx", arrays, metadata), metadata, **changes)


def engine_of(onnx_file: Path, metadata: Metadata, **changes: object) -> Path:
    """Write an ONNX file as an engine next to it, with its JSON; `changes` are those of its record."""
    path = onnx_file.with_suffix(".engine")
    path.write_bytes(onnx_file.read_bytes())
    record = replace(
        RECORD,
        profile=(metadata.min_batch, metadata.max_batch, metadata.max_batch),
        engine_sha256=sha256(path),
        engine_bytes=path.stat().st_size,
        onnx_file=onnx_file.name,
        **changes,  # type: ignore[arg-type]
    )
    write_json(record_path(path), to_json(metadata, record))
    return path
