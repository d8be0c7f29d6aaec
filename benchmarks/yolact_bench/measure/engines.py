"""The engines of `--engine PATH[:key=value,...]`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolact_bench.measure.stages import EngineCandidate
from yolact_bench.measure.suite import Settings
from yolact_runtime import Engine, load_engine
from yolact_runtime.engines.remote.address import engine_name, is_address
from yolact_runtime.engines.stored import check_stored_classes
from yolact_runtime.engines.tiles import tiled
from yolact_runtime.errors import UsageError, without_secrets

_NUMBERS = ("threads", "streams", "retries")
_SECONDS = ("timeout", "connect_timeout", "retry_seconds")
_OPTIONS = re.compile(r"[A-Za-z_][\w-]*=[^,=]*(,[A-Za-z_][\w-]*=[^,=]*)*")


@dataclass(frozen=True)
class EngineSpec:
    """One engine of the command line: a file or the name of published weights, options for `load_engine`, and
    a name for tables. `providers` is a tuple, `threads` and the limits of engines on a server are numbers,
    and `streams` is a number or "auto"."""

    path: str
    options: dict[str, Any] = field(default_factory=dict)
    name: str | None = None

    def label(self, path: str) -> str:
        """The given name, or else `path` and the options."""
        options = [
            f"{key}={value}"
            if key in (*_NUMBERS, *_SECONDS)
            else "+".join(value)
            if key == "providers"
            else value
            for key, value in self.options.items()
        ]
        return self.name or " ".join([path, *options])


def parse_engine(text: str) -> EngineSpec:
    """Parse `model.onnx:backend=openvino,precision=bf16,threads=2,name=ours`.

    Options begin after the last colon, and only where `key=` follows it, so paths such as `C:\\model.onnx`
    work; if a file with the whole text as its name exists, it is that file. `+` joins several providers.

    Raises:
        UsageError: no path, an option given twice, without a value, or not a number where one is needed.
    """
    path, colon, tail = text.rpartition(":")
    # The rest of an address after a password has an @.
    if not colon or "@" in tail or not _OPTIONS.fullmatch(tail) or os.path.lexists(text):
        return EngineSpec(text)
    text = without_secrets(text)
    if not path:
        raise UsageError(f"--engine {text}: there is no path before the options")
    options: dict[str, Any] = {}
    for pair in tail.split(","):
        key, _, value = pair.partition("=")
        key = key.replace("-", "_")
        if not value:
            raise UsageError(f"--engine {text}: {key}= has no value")
        if key in options:
            raise UsageError(f"--engine {text}: {key} is given twice")
        options[key] = tuple(value.split("+")) if key == "providers" else value
        if key in _NUMBERS and (key, value) != ("streams", "auto"):
            if not re.fullmatch(r"0*[1-9][0-9]{0,9}", value, re.ASCII):
                raise UsageError(f"--engine {text}: {key} is {value}; it must be a whole number of 1 or more")
            options[key] = int(value)
        if key in _SECONDS:
            if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value, re.ASCII):
                raise UsageError(f"--engine {text}: {key} is {value}; it must be a number of seconds")
            options[key] = float(value)
    name = options.pop("name", None)
    return EngineSpec(path, options, name)


def open_engines(
    texts: Sequence[str],
    settings: Settings,
    stack: ExitStack,
    defaults: Callable[[EngineSpec], Mapping[str, Any]] = lambda spec: {},
) -> list[EngineCandidate]:
    """Open the engines of `--engine`; `stack` closes them.

    The threads of `settings` go to every engine that does not name its own and computes on the CPU. What
    `defaults` returns are more options of an engine, overridden by those it names.

    Raises:
        UsageError: wrong options, or engines in PyTorch, which has one number of threads for the process,
            with different ones: the last engine opened would decide for all.
        YolactError: an engine cannot be opened.
    """
    specs = [parse_engine(text) for text in texts]
    for spec in specs:
        check_stored_classes(spec.path, settings.classes, "--classes")
    candidates = []
    for name, spec in zip(unique_names(specs), specs, strict=True):
        elsewhere = is_address(spec.path) or Path(spec.path).suffix.lower() in (".engine", ".plan")
        common = {"threads": settings.threads} if settings.threads and not elsewhere else {}
        options = {**common, **defaults(spec), **spec.options}
        engine = load_engine(spec.path, **options)
        engine = stack.enter_context(tiled(engine, **settings.tiles) if settings.tiles else engine)
        limits = settings.score_threshold, settings.top_k
        candidates.append(
            EngineCandidate(
                name,
                engine,
                *limits,
                path=spec.path,
                options=options,
                classes=settings.classes,
                tiles=settings.tiles,
            )
        )
    in_torch = [one for one in candidates if one.backend.startswith("PyTorch")]
    if len({one.options.get("threads") for one in in_torch}) > 1:
        raise UsageError("PyTorch engines in one run share their CPU threads; give all the same number")
    return candidates


def reopen(candidate: EngineCandidate, streams: int | str) -> Engine:
    """Open the engine of a candidate once more, with another number of streams."""
    engine = load_engine(candidate.path, **{**candidate.options, "streams": streams})
    return tiled(engine, **candidate.tiles) if candidate.tiles else engine


def on_gpu(backend: str) -> bool:
    """Whether an engine of this name computes on a GPU."""
    return any(word in backend.lower() for word in ("cuda", "tensorrt"))


def unique_names(specs: Sequence[EngineSpec]) -> list[str]:
    """Short unique names: file names if they differ, else paths, else numbered paths.

    Raises:
        UsageError: two engines were given the same name.
    """
    for name, count in Counter(spec.name for spec in specs if spec.name).items():
        if count > 1:
            raise UsageError(f"--engine ...:name={name} is given {count} times; names must differ")
    for paths in ([engine_name(spec.path) for spec in specs], [without_secrets(spec.path) for spec in specs]):
        names = [spec.label(path) for spec, path in zip(specs, paths, strict=True)]
        if len(set(names)) == len(names):
            return names
    return [spec.name or f"{spec.label(without_secrets(spec.path))} #{i}" for i, spec in enumerate(specs, 1)]
