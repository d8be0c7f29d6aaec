"""From what stands behind `--engine` to an engine: `PATH[:key=value,...]`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolact_runtime import Engine, load_engine
from yolact_runtime.errors import UsageError

_NUMBERS = ("threads", "streams")
_OPTIONS = re.compile(r"[A-Za-z_][\w-]*=[^,=]*(,[A-Za-z_][\w-]*=[^,=]*)*")


@dataclass(frozen=True)
class EngineSpec:
    """One engine as asked for.

    Attributes:
        path: A file, or the name of published weights.
        options: For `load_engine`; `providers` is a tuple, `threads` and `streams` are numbers (or streams
            "auto").
        name: In tables, where one was given.
    """

    path: str
    options: dict[str, Any] = field(default_factory=dict)
    name: str | None = None

    @property
    def short(self) -> str:
        """File name and options, for tables."""
        return self.name or " ".join([Path(self.path).name, *self._words()])

    @property
    def long(self) -> str:
        """The same with the whole path."""
        return " ".join([self.path, *self._words()])

    def _words(self) -> list[str]:
        return [
            f"{key}={value}" if key in _NUMBERS else "+".join(value) if key == "providers" else value
            for key, value in self.options.items()
        ]


def parse_engine(text: str) -> EngineSpec:
    """Take `model.onnx:backend=openvino,precision=bf16,threads=2,name=ours` apart.

    Options begin after the last colon, and only where `key=` follows it, so paths such as `C:\\model.onnx`
    need no care; a file that exists under the whole text is that file. Several providers are joined by `+`.

    Raises:
        UsageError: no path, an option given twice, without a value, or not a number where one is needed.
    """
    path, colon, tail = text.rpartition(":")
    if not colon or not _OPTIONS.fullmatch(tail) or Path(text).exists():
        return EngineSpec(text)
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
        options[key] = _value(text, key, value)
    name = options.pop("name", None)
    return EngineSpec(path, options, name)


def _value(text: str, key: str, value: str) -> Any:
    if key == "streams" and value == "auto":
        return value
    if key in _NUMBERS:
        if not value.isdigit() or int(value) < 1:
            raise UsageError(f"--engine {text}: {key} is {value}; it must be a whole number of 1 or more")
        return int(value)
    return tuple(value.split("+")) if key == "providers" else value


def open_engine(path: str, options: Mapping[str, Any]) -> Engine:
    """Open one; errors are those of `load_engine`."""
    return load_engine(path, **options)


def different_names(specs: Sequence[EngineSpec]) -> list[str]:
    """Short and different names: file names where they differ, else paths, else numbered.

    Raises:
        UsageError: two engines were given the same name.
    """
    given = [spec.name for spec in specs if spec.name]
    for name in given:
        if given.count(name) > 1:
            raise UsageError(
                f"--engine ...:name={name} is given {given.count(name)} times; names must differ"
            )
    short = [spec.short for spec in specs]
    if len(set(short)) == len(short):
        return short
    long = [spec.name or spec.long for spec in specs]
    if len(set(long)) == len(long):
        return long
    return [spec.name or f"{spec.long} #{number}" for number, spec in enumerate(specs, start=1)]
