"""The way from a path to an engine: which file, which library, and the choice where nobody chose."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from yolact_runtime.engines.backends import (
    BACKENDS,
    IN_BF16,
    PRECISIONS,
    SUFFIXES,
    backends_of,
    check_backend,
)
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.find_engine import engine_beside
from yolact_runtime.engines.onnx_file import read_properties
from yolact_runtime.errors import UsageError, YolactError, missing_extra
from yolact_runtime.metadata import PREFIX

log = logging.getLogger(__name__)


def load_engine(
    path: str | Path,
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    streams: int | str = 1,
    **options: Any,
) -> Engine:
    """Open a model.

    What was opened, and why where nobody chose, is logged as one line.

    Args:
        path: A file, or the name of a published model such as `yolact_resnet50` (downloaded once).
        backend: "onnxruntime", "openvino", "cuda" or "tensorrt" for exported files. Left out: CUDA where it
            really loads, otherwise the quickest for this CPU and file (docs/how-to/deploy-cpu.md).
        precision: "fp32", "fp16", "bf16", "int8" or "int8+bf16", to be sure of it. Those with bf16 are ways
            to run an fp32 or int8 file in OpenVINO; the others are properties of the file.
        threads: CPU threads, for all streams together; left out, as many as there are cores.
        streams: Calls that are to run at the same time; "auto" for the highest throughput, which is 1 for
            engines that know no streams.
        options: For the backend, for example `providers` of ONNX Runtime.

    Raises:
        YolactError: no such file, unknown suffix, broken file, missing packages.
        UsageError: the backend does not open such files or has no such option, or the precision is not the
            one that is delivered.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r}; allowed: {', '.join(PRECISIONS)}")
    if threads is not None:
        options["threads"] = threads
    if streams != 1:
        options["streams"] = streams
    points = {point.name: point for point in entry_points(group="yolact_runtime.engines")}
    known = sorted({*points, *SUFFIXES})
    file = _existing_file(path, ", ".join(f".{name}" for name in known))
    suffix = file.suffix.lower().removeprefix(".")
    if suffix in SUFFIXES:
        engine, why = open_exported(file, backend, precision, options)
    else:
        engine, why = _open_by_entry_point(points[suffix], file, backend, options), ""
    try:
        check_precision(engine, precision, file)
    except UsageError:
        engine.close()
        raise
    warn_of_precision(engine, file)
    parts = [engine.name, engine.precision]
    parts += [f"{engine.threads} threads"] if engine.threads else []
    parts += [f"{engine.streams} streams"] if engine.streams > 1 else []
    log.info("%s: %s%s", file.name, ", ".join(parts), f" (chosen: {why})" if why else "")
    return engine


def _existing_file(path: str | Path, known: str) -> Path:
    file = Path(path)
    if not file.exists() and not file.suffix and file.name == str(path):
        file = _file_of_name(str(path))
    if not file.exists():
        raise YolactError(f"engine {path} does not exist")
    if file.is_dir():
        raise YolactError(f"engine {path} is a folder; give a file ending in {known}")
    if file.suffix.lower() not in known.split(", "):
        raise YolactError(f"engine {path}: unknown suffix {file.suffix!r}; known are {known}")
    return file


def _open_by_entry_point(
    point: EntryPoint, file: Path, backend: str | None, options: dict[str, Any]
) -> Engine:
    if backend is not None:
        check_backend(backend, file)
    purpose = f"opening .{point.name} files"
    opener = _load(point, purpose)
    try:
        return call(opener, file, options, f"a .{point.name} engine")
    except ModuleNotFoundError as error:
        raise _missing(error, purpose) from error


def _file_of_name(name: str) -> Path:
    points = list(entry_points(group="yolact_runtime.names"))
    if not points:
        raise YolactError(f"engine {name} does not exist")
    for point in points:
        resolve = _load(point, f"downloading {name}")
        try:
            return Path(resolve(name))
        except ModuleNotFoundError as error:
            raise _missing(error, f"downloading {name}") from error
        except YolactError:
            if point is points[-1]:
                raise
    raise AssertionError("unreachable")


def _load(point: EntryPoint, purpose: str) -> Any:
    try:
        return point.load()
    except ModuleNotFoundError as error:
        raise _missing(error, purpose) from error


def _missing(error: ModuleNotFoundError, purpose: str) -> YolactError:
    return missing_extra(f"{purpose} (no module {error.name!r})", "train")


def open_exported(
    file: Path, backend: str | None, precision: str | None, options: Mapping[str, Any]
) -> tuple[Engine, str]:
    """Open a file that one of `BACKENDS` runs.

    Args:
        file: Exists, with one of `SUFFIXES`.
        backend: One of `BACKENDS`, or None to choose.
        precision: One of `PRECISIONS`, or None for the file's.
        options: For the backend.

    Returns:
        The engine, and why it is this one; empty where `backend` says it.

    Raises:
        YolactError: the file is broken, or a library is missing.
        UsageError: the backend does not open such files, or does not take an option.
    """
    suffix = file.suffix.lower().removeprefix(".")
    able = backends_of(suffix)
    if backend is not None:
        check_backend(backend, file)
        if precision in IN_BF16 and backend in ("onnxruntime", "cuda"):
            raise UsageError(
                f"precision {precision}: backend {backend} does not compute in it; use --backend openvino"
            )
        return _open(backend, file, precision, options), ""
    if len(able) == 1:
        return _open(able[0], file, precision, options), ""
    _refuse_unknown(options, able, suffix)
    if options.get("providers"):
        return _open("onnxruntime", file, precision, options), "it was given providers"
    properties = read_properties(file)
    if properties and precision not in IN_BF16 and _cuda_may_load():
        try:
            return _open("cuda", file, precision, options), "CUDA loads"
        except UsageError:
            raise
        except YolactError as error:
            log.warning("%s; it is run on the CPU", error)
    delivered = (properties or {}).get(f"{PREFIX}precision", "").strip('"')
    chosen, why = choose_for_cpu(delivered, precision)
    return _open(chosen, file, precision, options), why


def choose_for_cpu(delivered: str, asked: str | None = None) -> tuple[str, str]:
    """The fastest backend for an ONNX file on this CPU as measured (docs/how-to/deploy-cpu.md), and why.

    Args:
        delivered: Precision of the file; empty where it is not known.
        asked: The precision that the user wants, if any. bf16 is never chosen otherwise.
    """
    if asked in IN_BF16:
        return "openvino", "it is what computes in bf16"
    if importlib.util.find_spec("openvino") is None:
        return "onnxruntime", "OpenVINO is not installed"
    if delivered == "int8":
        return "openvino", "quicker than ONNX Runtime in int8"
    if delivered in ("fp32", "fp16") and _cpu_has_bf16():
        return "openvino", "quicker than ONNX Runtime on CPUs with AVX-512 and bf16"
    return "onnxruntime", "no other was measured to be quicker on this CPU"


def check_precision(engine: Engine, asked: str | None, file: Path) -> None:
    """Raise a UsageError where `engine` does not deliver the precision that was asked for.

    A file in another precision that is computed in this one does not count: its values are rounded already.
    """
    stored, computed = engine.metadata.precision, engine.precision
    if asked is None or (computed == asked and asked in (stored, *IN_BF16)):
        return
    if asked in IN_BF16:
        remedy = f"{asked} is for {IN_BF16[asked]} files in OpenVINO: --backend openvino"
    elif stored == asked:
        remedy = _better_backend(asked)
    else:
        suffix = file.suffix.lower().removeprefix(".")
        target = {"xml": "openvino", "engine": "trt", "plan": "trt"}.get(suffix, "onnx")
        remedy = f"export it: yolact-export --weights W --to {target} --precision {asked}"
        remedy += " --calibrate DIR" if asked == "int8" else ""
    found = f"the file is {stored}" if computed == asked else f"{computed} is what {engine.name} delivers"
    raise UsageError(f"engine {file}: precision {asked} was asked for, and {found}; {remedy}")


def warn_of_precision(engine: Engine, file: Path) -> None:
    """Say so where a file is not computed in the precision that it has."""
    stored = engine.metadata.precision
    if engine.precision not in (stored, *IN_BF16):
        log.warning(
            "%s is in %s, and %s computes it in %s: no quicker than an fp32 file; %s",
            file,
            stored,
            engine.name,
            engine.precision,
            _better_backend(stored),
        )


def _better_backend(precision: str) -> str:
    gpu = "run it on a GPU: --backend cuda or tensorrt"
    return "use --backend openvino" if precision == "int8" else gpu


def options_of(opener: Callable[..., Any]) -> list[str]:
    """Names of the options that an engine's class or function takes after the path."""
    return list(inspect.signature(opener).parameters)[1:]


def call(opener: Callable[..., Any], file: Path, options: Mapping[str, Any], what: str) -> Engine:
    """Open `file` with an engine's class or function.

    Args:
        opener: Takes the path, and options by the names of its parameters.
        file: Exists.
        options: For it. `streams="auto"` is left out where it knows no streams.
        what: What it is, for messages.

    Raises:
        YolactError: the file is empty.
        UsageError: it does not take an option.
    """
    if not file.stat().st_size:
        raise YolactError(f"engine {file} is empty (0 bytes); copy or export it again")
    allowed = options_of(opener)
    given = {
        name: value
        for name, value in options.items()
        if name in allowed or (name, value) != ("streams", "auto")
    }
    for option in given:
        if option not in allowed:
            raise UsageError(
                f"option {option!r} does not apply to {what}; it takes {', '.join(allowed) or 'none'}"
            )
    engine: Engine = opener(file, **given)
    return engine


def _open(name: str, file: Path, precision: str | None, options: Mapping[str, Any]) -> Engine:
    opener = _opener(name)
    if name == "tensorrt" and file.suffix.lower() == ".onnx":
        file = engine_beside(file)
    extra = {"precision": precision} if precision is not None and "precision" in options_of(opener) else {}
    try:
        return call(opener, file, {**options, **extra}, f"backend {name}")
    except ModuleNotFoundError as error:
        raise _not_installed(name, error) from error


def _opener(name: str) -> Callable[..., Engine]:
    module, _, attribute = BACKENDS[name].opener.partition(":")
    try:
        opener: Callable[..., Engine] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise _not_installed(name, error) from error
    return opener


def _not_installed(name: str, error: ModuleNotFoundError) -> YolactError:
    extra = BACKENDS[name].extra
    if extra:
        return missing_extra(f"backend {name} (no module {error.name!r})", extra)
    return YolactError(
        f"backend {name} needs the package {error.name}, which is not installed; run: pip install yolact"
    )


def _refuse_unknown(options: Mapping[str, Any], able: list[str], suffix: str) -> None:
    allowed = dict.fromkeys(option for name in able for option in options_of(_opener(name)))
    for option in options:
        if option not in allowed:
            raise UsageError(
                f"option {option!r} does not apply to a .{suffix} engine; it takes {', '.join(allowed)}"
            )


def _cuda_may_load() -> bool:
    """Whether trying CUDA makes sense: a try that must fail costs seconds."""
    try:
        import onnxruntime
    except ImportError:
        return False
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _cpu_has_bf16() -> bool:
    try:
        core = importlib.import_module("yolact_runtime.engines.openvino").shared_core()
    except YolactError:
        return False
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
