"""Check an engine against its JSON file and this machine, then open it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from yolact_runtime.cuda.gpu import current_gpu
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.device.engine import DeviceEngine
from yolact_runtime.engines.tensorrt.network import TensorRtNetwork
from yolact_runtime.engines.tensorrt.record import (
    LIBRARIES,
    TITLES,
    EngineRecord,
    read_engine,
    rebuild_command,
)
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.packages import imports_failed


def open_engine(path: str | Path, streams: int | str = "auto", graphs: bool = True) -> Engine:
    """Check that an engine is intact and runs on this machine, then open it.

    Args:
        path: The engine; its JSON file is in the same folder.
        streams: Number of calls at the same time, 1..8, each with its own buffers on the GPU; "auto" for 2.
        graphs: Launch by CUDA graphs, captured at the second call of each batch size.

    Raises:
        YolactError: the engine does not fit its JSON file or this machine, or a package is missing; names the
            field and the command that builds the engine again, or the file that runs here.
        DeviceError: the GPU, its driver or TensorRT failed.
        UsageError: `streams` is outside its range.
    """
    path = Path(path)
    metadata, record = read_engine(path)
    library = check_machine(path, record)
    try:
        network = TensorRtNetwork(path, metadata, record, library)
        return DeviceEngine(path, metadata, network, streams, graphs)
    except UsageError:
        raise
    except YolactError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise type(error)(f"{where}{error}; {_instead(path, record)}") from error


def check_machine(path: Path, record: EngineRecord) -> ModuleType:
    """The library that runs the engine.

    Raises:
        YolactError: this machine's library or GPU cannot run it.
    """
    library = _library(path, record)
    version = str(library.__version__)
    if problem := record.problem_with_library(version):
        raise YolactError(f"{path}: {problem}; build it again: {rebuild_command(path, record)}")
    try:
        from cuda.bindings import driver  # noqa: F401
    except ImportError as error:  # it also tells whether there is a GPU
        raise _unusable(path, record, error) from error
    gpu = current_gpu()
    if gpu is None:
        raise YolactError(
            f"{path}: {TITLES[record.library]} engines need an NVIDIA GPU with its driver, and this machine"
            f" has none; {_instead(path, record)}"
        )
    if problem := record.problem_with_gpu(gpu.capability):
        command = rebuild_command(path, record, gpu.capability)
        raise YolactError(f"{path}: {problem} ({gpu.name}); build it again: {command}")
    return library


def _instead(path: Path, record: EngineRecord) -> str:
    """The advice to use the ONNX file, which runs without TensorRT and a GPU."""
    return f"or use --engine {path.parent / record.onnx_file}"


def _unusable(path: Path, record: EngineRecord, error: ImportError) -> YolactError:
    """The error for a package that is not installed, or does not load."""
    extra = next(short for short, name in LIBRARIES.items() if name == record.library)
    needed = imports_failed(error, f"opening {path}, built by {record.title},", extra)
    return YolactError(f"{needed}, {_instead(path, record)}")


def _library(path: Path, record: EngineRecord) -> ModuleType:
    """The library that built the engine, imported."""
    try:
        return importlib.import_module(record.library)
    except ModuleNotFoundError as error:
        raise _unusable(path, record, error) from error
    except (ImportError, OSError) as error:  # the package is installed, its shared libraries are not
        raise YolactError(
            f"{path}: {TITLES[record.library]} does not load: {error}; {_instead(path, record)}"
        ) from error
