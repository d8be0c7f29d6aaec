"""TensorRT and TensorRT-RTX engines: the checks that come before one is opened."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from yolact_runtime.engine import Engine
from yolact_runtime.engine_record import (
    LIBRARIES,
    TITLES,
    EngineRecord,
    read_engine,
    rebuild_command,
)
from yolact_runtime.errors import YolactError, missing_extra
from yolact_runtime.gpu import current_gpu


def open_engine(path: str | Path) -> Engine:
    """Check that an engine is intact and fits this machine, then open it.

    Running engines is not part of this version: what passes every check is refused by name of what runs
    instead.

    Raises:
        YolactError: names the field of the JSON beside it that does not fit, and the command that builds
            the engine again.
    """
    path = Path(path)
    _, record = read_engine(path)
    check_machine(path, record)
    raise YolactError(
        f"{path}: it fits this machine, but this version of the runtime cannot run TensorRT engines;"
        f" use --engine {path.parent / record.onnx_file}"
    )


def check_machine(path: Path, record: EngineRecord) -> None:
    """Raise a YolactError where this machine's library or GPU cannot run the engine."""
    version = str(_library(path, record).__version__)
    if problem := record.problem_with_library(version):
        raise YolactError(f"{path}: {problem}; build it again: {rebuild_command(path, record)}")
    gpu = current_gpu()
    if gpu is None:
        raise YolactError(
            f"{path}: {TITLES[record.library]} engines need an NVIDIA GPU with its driver, and none is"
            f" here; use --engine {path.parent / record.onnx_file}"
        )
    if problem := record.problem_with_gpu(gpu.capability):
        command = rebuild_command(path, record, gpu.capability)
        raise YolactError(f"{path}: {problem} ({gpu.name}); build it again: {command}")


def _library(path: Path, record: EngineRecord) -> ModuleType:
    try:
        return importlib.import_module(record.library)
    except ModuleNotFoundError as error:
        extra = next(short for short, name in LIBRARIES.items() if name == record.library)
        raise missing_extra(f"opening {path}, built by {record.title},", extra) from error
    except (ImportError, OSError) as error:  # the package is there, its shared libraries are not
        raise YolactError(f"{path}: {TITLES[record.library]} does not load: {error}") from error
