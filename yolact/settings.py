"""Typed settings: frozen dataclasses from plain values and from `section.field=value` assignments."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from yolact_runtime.errors import UsageError

T = TypeVar("T")


def override(config: T, assignments: Sequence[str]) -> T:
    """Apply `section.field=value` assignments, such as `train.lr=5e-4`, checked by name and type.

    Values are read as JSON where they are JSON (numbers, true, [1, 2]), else as a string.

    Raises:
        UsageError: not an assignment, an unknown field (names the near ones), or the wrong type.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment!r}: expected section.field=value, such as train.lr=5e-4")
        config = _assign(config, key.strip().split("."), _parse(text.strip()), key.strip(), type(config))
    return config


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _assign(owner: T, keys: list[str], value: Any, full: str, root: type) -> T:
    hints = typing.get_type_hints(type(owner))
    if keys[0] not in hints:
        raise UsageError(f"no setting {full!r}; {nearest(full, _settings(root))}")
    old = getattr(owner, keys[0])
    if len(keys) > 1:
        if not dataclasses.is_dataclass(old):
            raise UsageError(f"no setting {full!r}: {keys[0]} is a single value")
        new: Any = _assign(old, keys[1:], value, full, root)
    elif dataclasses.is_dataclass(old):
        raise UsageError(
            f"{full!r} is a section; its settings are {', '.join(sorted(_settings(type(old), full)))}"
        )
    else:
        new = convert(value, hints[keys[0]], full)
    return replace(owner, **{keys[0]: new})  # type: ignore[type-var]


def _settings(cls: type, prefix: str = "") -> list[str]:
    """Dotted names of all fields below `cls`."""
    names: list[str] = []
    for name, hint in typing.get_type_hints(cls).items():
        full = f"{prefix}.{name}" if prefix else name
        names += _settings(hint, full) if dataclasses.is_dataclass(hint) else [full]  # type: ignore[arg-type]
    return names


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` (a dataclass, tuple, Literal, Optional or plain type).

    Raises:
        UsageError: it cannot be; names `where`, the value and what is allowed.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        hints = typing.get_type_hints(hint)
        for key in value:
            if key not in hints:
                raise UsageError(
                    f"no setting {(where + '.' if where else '') + key!r}; {nearest(key, hints)}"
                )
        built = {key: convert(v, hints[key], f"{where}.{key}" if where else key) for key, v in value.items()}
        try:
            return hint(**built)  # type: ignore[operator]
        except TypeError as error:
            raise UsageError(
                f"{where or 'configuration'}: {str(error).partition('() ')[2] or error}"
            ) from None
    if origin is Literal:
        if value in args:
            return value
        raise UsageError(f"{where} = {value!r}; allowed: {', '.join(map(str, args))}")
    if origin in (typing.Union, types.UnionType):
        return None if value is None else convert(value, next(a for a in args if a is not type(None)), where)
    if origin is tuple and isinstance(value, (list, tuple)):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(convert(item, args[0], where) for item in value)
        if len(args) == len(value):
            return tuple(convert(item, arg, where) for item, arg in zip(value, args, strict=True))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    kind = hint.__name__ if isinstance(hint, type) and origin is None else str(hint)
    raise UsageError(f"{where} = {value!r}; expected {kind}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Words for an error: the names in `known` that are near `name`, or all of them."""
    names = sorted(known)
    near = [known for known in names if known.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"near ones: {', '.join(near)}" if near else f"known: {', '.join(names)}"


def check(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise a UsageError unless `holds`."""
    if not holds:
        raise UsageError(f"{name} = {value!r}; allowed: {allowed}")
