"""`load_engine`: from a path to an engine that is ready to run."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from yolact_runtime.engines.backends import (
    BACKENDS,
    IN_BF16,
    PRECISIONS,
    SUFFIXES,
    UNKNOWN,
    backends_of,
    check_backend,
)
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.choose import choose_for_cpu, cuda_may_load
from yolact_runtime.engines.onnx_file import check_onnx
from yolact_runtime.engines.remote.address import is_address
from yolact_runtime.engines.threads import check_threads
from yolact_runtime.engines.trial import TRIED, try_engine
from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.files import sha256
from yolact_runtime.metadata import PREFIX, InputSize, height_width, size_text, to_input_size
from yolact_runtime.packages import imports_failed
from yolact_runtime.untrusted import check_regular

log = logging.getLogger(__name__)


def load_engine(
    path: str | Path,
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    streams: int | str = 1,
    input_size: InputSize | str | None = None,
    **options: Any,
) -> Engine:
    """Open a model, and log in one line what was opened and why.

    Args:
        path: A file, the name of a published model such as `yolact_resnet50` (downloaded once), or the
            address of a model on a Triton server such as `grpc://localhost:8001/yolact`.
        backend: "onnxruntime", "openvino", "cuda" or "tensorrt" for exported files. Left out: CUDA where it
            loads, otherwise the fastest for this CPU and file (docs/how-to/deploy-cpu.md).
        precision: "fp32", "fp16", "bf16", "int8" or "int8+bf16"; an engine that delivers another is refused.
            Those with bf16 are ways to run an fp32 or int8 file in OpenVINO, fp16 is one to run a checkpoint
            on a GPU; otherwise they are properties of the file.
        threads: CPU threads, for all streams together; left out, as many as there are cores.
        streams: Number of concurrent calls; "auto" for the highest throughput, which is 1 for engines
            without streams.
        input_size: Of a checkpoint that is opened with another input than it was trained with: the side of a
            square, (height, width), or text such as "384x640". An exported file of another size is refused.
        options: For the backend, for example `providers` of ONNX Runtime; for an address, the limits of
            `yolact_runtime.engines.remote.engine.RemoteEngine`.

    Raises:
        YolactError: no such file, unknown suffix, broken file, missing packages, a server that is away.
        UsageError: the backend does not open such files or has no such option, or the engine does not
            deliver the precision.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r}; allowed: {', '.join(PRECISIONS)}")
    check_threads(threads, streams)
    if threads is not None:
        options["threads"] = threads
    if is_address(path):
        return _open_address(path, precision, input_size, {"streams": streams, **options}, backend)
    if streams != 1:
        options["streams"] = streams
    size = None if input_size is None else to_input_size(input_size)
    file = _existing_file(path)
    if _suffix(file) in SUFFIXES:
        engine, why = open_exported(file, backend, precision, options)
    else:
        options |= {} if size is None else {"input_size": size}
        engine, why = _open_by_entry_point(file, backend, precision, options), ""
    try:
        check_precision(engine, precision, file)
        _check_input_size(engine, size, file)
    except UsageError:
        engine.close()
        raise
    _warn_of_precision(engine, file)
    facts = [engine.name, engine.precision]
    facts += [counted(engine.threads, "thread")] if engine.threads else []
    facts += [f"{engine.streams} streams"] if engine.streams > 1 else []
    log.info("%s: %s%s", file.name, ", ".join(facts), f" (chosen: {why})" if why else "")
    return engine


def _open_address(
    address: str | Path,
    precision: str | None,
    input_size: InputSize | str | None,
    options: dict[str, Any],
    backend: str | None,
) -> Engine:
    """Open the engine of an address on a server."""
    from yolact_runtime.engines.remote.engine import RemoteEngine
    from yolact_runtime.engines.remote.open import open_remote

    options |= {} if backend is None else {"backend": backend}
    known = _options_for(RemoteEngine, options, "an engine on a server")
    return open_remote(address, precision, None if input_size is None else to_input_size(input_size), known)


def _suffix(file: Path) -> str:
    return file.suffix.lower().removeprefix(".")


def entry_points(group: str) -> dict[str, Any]:
    """Entry points in `yolact_runtime.<group>`, by name: what other packages register."""
    from importlib import metadata  # takes 30 ms, which exported files do without

    return {point.name: point for point in metadata.entry_points(group=f"yolact_runtime.{group}")}


def _existing_file(path: str | Path) -> Path:
    """The file of a path or of the name of a published model; its suffix is known."""
    file = Path(path)
    # These functions raise no error for a name that no file can have.
    if not os.path.exists(file) and not file.suffix and file.name == str(path):  # noqa: PTH110
        file = _file_of_name(str(path))
    if not os.path.exists(file):  # noqa: PTH110
        raise YolactError(f"engine {path} does not exist")
    if not file.is_dir() and _suffix(file) in SUFFIXES:
        return file
    suffixes = sorted({*entry_points("engines"), *SUFFIXES})
    known = ", ".join(f".{suffix}" for suffix in suffixes)
    if file.is_dir():
        raise YolactError(f"engine {path} is a folder; give a file ending in {known}")
    if _suffix(file) not in suffixes:
        raise YolactError(f"engine {path}: unknown suffix {file.suffix!r}; known are {known}")
    return file


def _file_of_name(name: str) -> Path:
    """The file of a published model; downloads it the first time."""
    failure = YolactError(f"engine {name} does not exist")
    for point in entry_points("names").values():
        try:
            return Path(point.load()(name))
        except ImportError as error:
            raise imports_failed(error, f"downloading {name}") from error
        except YolactError as error:
            failure = error
    raise failure


def _open_by_entry_point(
    file: Path, backend: str | None, precision: str | None, options: dict[str, Any]
) -> Engine:
    """Open a file, such as a checkpoint, with the engine that another package registers for its suffix."""
    if backend is not None:
        check_backend(backend, file)
    point = entry_points("engines")[_suffix(file)]
    try:
        opener = point.load()
        if precision is not None and "precision" in options_of(opener):
            options = {**options, "precision": precision}
        return call(opener, file, options, f"a .{point.name} engine")
    except ImportError as error:
        raise imports_failed(error, f"opening .{point.name} files") from error


def open_exported(
    file: Path, backend: str | None, precision: str | None, options: Mapping[str, Any]
) -> tuple[Engine, str]:
    """Open an existing file that one of `BACKENDS` runs; arguments as for `load_engine`.

    Returns:
        The engine, and the reason for the choice; empty where nothing was chosen.

    Raises:
        YolactError: the file is broken, or a library is missing.
        UsageError: the backend does not open such files, or does not take an option.
    """
    able = backends_of(_suffix(file))
    if backend is not None:
        check_backend(backend, file)
        if precision in IN_BF16 and backend in ("onnxruntime", "cuda"):
            raise UsageError(
                f"precision {precision}: backend {backend} does not compute in it; use --backend openvino"
            )
        return _open(backend, file, precision, options), ""
    if len(able) == 1:
        return _open(able[0], file, precision, options), ""
    _refuse_unknown(options, able, _suffix(file))
    if options.get("providers"):
        return _open("onnxruntime", file, precision, options), "it has the given providers"
    _check_content(file)
    properties = check_onnx(file).properties
    if precision not in IN_BF16 and cuda_may_load():
        try:
            return _open("cuda", file, precision, options), "CUDA loads"
        except UsageError:
            raise
        except YolactError as error:
            log.warning("%s; using the CPU", error)
    delivered = properties.get(f"{PREFIX}precision", "").strip('"')
    chosen, why = choose_for_cpu(delivered, precision)
    return _open(chosen, file, precision, options), why


def check_precision(engine: Engine, asked: str | None, file: Path) -> None:
    """Raise a UsageError if `engine` does not deliver the precision that was asked for.

    Computing a file of lower precision in this one does not count: its weights are already rounded.
    """
    stored, computed = engine.metadata.precision, engine.precision
    if asked is not None and computed == UNKNOWN:
        raise UsageError(
            f"engine {file}: precision {asked} was asked for, and what {engine.name} computes in is not"
            f" known: {engine.unknown_because} (without --precision it runs anyway)"
        )
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
    found = f"the file is {stored}" if computed == asked else f"{engine.name} delivers {computed}"
    raise UsageError(f"engine {file}: precision {asked} was asked for, but {found}; {remedy}")


def _check_input_size(engine: Engine, asked: InputSize | None, file: Path) -> None:
    """Raise a UsageError if the input of `engine` is not of the size that was asked for."""
    if asked is not None and engine.metadata.input_shape != height_width(asked):
        found, wanted = size_text(engine.metadata.input_size), size_text(asked)
        raise UsageError(
            f"engine {file}: its input is {found}, and {wanted} was asked for; export it for that size:"
            f" yolact-export --weights W --input-size {wanted}"
        )


def _warn_of_precision(engine: Engine, file: Path) -> None:
    """Warn if the engine computes in another precision than that of the file."""
    stored = engine.metadata.precision
    if engine.precision == UNKNOWN:
        log.warning(
            "%s is in %s, and what %s computes in is not known: %s",
            file, stored, engine.name, engine.unknown_because,
        )  # fmt: skip
    elif engine.precision not in (stored, *IN_BF16):
        log.warning(
            "%s is in %s, but %s computes in %s: no faster than an fp32 file; %s",
            file, stored, engine.name, engine.precision, _better_backend(stored),
        )  # fmt: skip


def _better_backend(precision: str) -> str:
    gpu = "run it on a GPU: --backend cuda or tensorrt"
    return "use --backend openvino, or export it again" if precision == "int8" else gpu


def options_of(opener: Callable[..., Any]) -> list[str]:
    """Names of the options that an engine's class or opening function takes after the path."""
    return list(inspect.signature(opener).parameters)[1:]


def call(opener: Callable[..., Any], file: Path, options: Mapping[str, Any], what: str) -> Engine:
    """Open `file` with an engine's class or opening function, which messages call `what`.

    `streams="auto"` is left out if the opener has no such option.

    Raises:
        YolactError: the file is empty.
        UsageError: the opener does not take an option.
    """
    _check_content(file)
    engine: Engine = opener(file, **_options_for(opener, options, what))
    return engine


def _options_for(opener: Callable[..., Any], options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Those of `options` that an opener takes; a UsageError if it does not take one."""
    allowed = options_of(opener)
    for option, value in options.items():
        if option not in allowed and (option, value) != ("streams", "auto"):
            raise _unknown_option(option, what, allowed)
    return {name: value for name, value in options.items() if name in allowed}


def _check_content(file: Path) -> None:
    """Raise a YolactError unless a file is a regular one with some content."""
    check_regular(file, "engine")
    if not file.stat().st_size:
        raise YolactError(f"engine {file} is empty (0 bytes); copy or export it again")


def _open(name: str, file: Path, precision: str | None, options: Mapping[str, Any]) -> Engine:
    """Open a file with the backend `name`."""
    try:
        opener = _opener(name)
        if name == "tensorrt" and _suffix(file) == "onnx":
            file = find_engine(file)
        if precision is not None and "precision" in options_of(opener):
            options = {**options, "precision": precision}
        if name in TRIED:
            _check_content(file)
            _options_for(opener, options, f"backend {name}")
            try_engine(file, name)
        return call(opener, file, options, f"backend {name}")
    except ImportError as error:
        raise imports_failed(error, f"backend {name}", BACKENDS[name].extra) from error


def _opener(name: str) -> Callable[..., Engine]:
    module, _, attribute = BACKENDS[name].opener.partition(":")
    opener: Callable[..., Engine] = getattr(importlib.import_module(module), attribute)
    return opener


def _refuse_unknown(options: Mapping[str, Any], able: list[str], suffix: str) -> None:
    """Raise a UsageError for an option that no backend takes which opens files of this suffix."""
    allowed: dict[str, None] = {}
    for name in able:
        allowed |= dict.fromkeys(options_of(_opener(name)))
        if options.keys() <= allowed.keys():
            return  # without importing the other backends
    option = next(option for option in options if option not in allowed)
    raise _unknown_option(option, f"a .{suffix} engine", allowed)


class UnknownOptionError(UsageError):
    """An option that what is opened does not take."""

    option = ""


def _unknown_option(option: str, what: str, allowed: Iterable[str]) -> UnknownOptionError:
    """The error for an option that what is opened does not take."""
    advice = ""
    if option == "classes":
        advice = (
            "; the names of a checkpoint without its own are class_names, and the classes to find go to"
            " predict(classes=...)"
        )
    known = ", ".join(allowed) or "none"
    error = UnknownOptionError(f"option {option!r} does not apply to {what}; it takes {known}{advice}")
    error.option = option
    return error


def find_engine(onnx: Path) -> Path:
    """The `.engine` or `.plan` in the folder of an `.onnx` file, with its name, checked to be built from it.

    Raises:
        YolactError: there is none, it was built from something else, or it cannot be read. The message has
            the command that builds it.
    """
    from yolact_runtime.engines.tensorrt.record import read_engine, rebuild_command

    found = [path for suffix in (".engine", ".plan") if (path := onnx.with_suffix(suffix)).exists()]
    if not found:
        target = str(onnx.with_suffix(".engine"))
        command = shlex.join(["yolact-export", "--weights", str(onnx), "--to", "trt", "--output", target])
        raise YolactError(
            f"engine {onnx}: there is no {Path(target).name} in its folder; build it: {command}"
        )
    metadata, record = read_engine(found[0])
    if record.onnx_file != onnx.name or metadata.onnx_sha256 != sha256(onnx):
        raise YolactError(
            f"{found[0]}: it was built from another {record.onnx_file} than {onnx}; build it again:"
            f" {rebuild_command(found[0], record)}"
        )
    return found[0]
