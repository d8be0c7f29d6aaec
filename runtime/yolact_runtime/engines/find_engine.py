"""The TensorRT engine that was built from an ONNX file and lies beside it."""

from __future__ import annotations

import shlex
from pathlib import Path

from yolact_runtime.engines.tensorrt.record import read_engine, rebuild_command
from yolact_runtime.errors import YolactError
from yolact_runtime.files import sha256


def engine_beside(onnx: Path) -> Path:
    """The `.engine` or `.plan` of the same name as an `.onnx` file, checked to be built from this very file.

    Raises:
        YolactError: there is none, it was built from something else, or it cannot be read. The message has
            the command that builds it.
    """
    found = [path for suffix in (".engine", ".plan") if (path := onnx.with_suffix(suffix)).exists()]
    if not found:
        target = str(onnx.with_suffix(".engine"))
        command = shlex.join(["yolact-export", "--weights", str(onnx), "--to", "trt", "--output", target])
        raise YolactError(f"engine {onnx}: no {Path(target).name} lies beside it; build it: {command}")
    metadata, record = read_engine(found[0])
    if record.onnx_file != onnx.name or metadata.onnx_sha256 != sha256(onnx):
        raise YolactError(
            f"{found[0]}: it was built from another {record.onnx_file} than {onnx}; build it again:"
            f" {rebuild_command(found[0], record)}"
        )
    return found[0]
