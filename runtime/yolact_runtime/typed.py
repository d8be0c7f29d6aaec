"""Plain values, as they come from JSON or a command line, as the annotated types of dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal


def convert(value: Any, hint: Any, where: str = "") -> Any:
    """Convert `value` to the type `hint`: a dataclass, tuple, dict, Literal, Optional or plain type.

    Whole numbers are accepted as floats, and floats without a fraction as whole numbers.

    Args:
        value: Strings, numbers, lists and dicts.
        hint: The annotation.
        where: Dotted name of the value, for the error.

    Raises:
        ValueError: it is something else; names `where`, the value and what is allowed.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _convert_fields(value, hint, where)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"{where} = {shown(value)}; allowed: {', '.join(map(str, args))}")
    if origin in (typing.Union, types.UnionType):
        return None if value is None and type(None) in args else _convert_union(value, args, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        if args[-1] is Ellipsis:
            return tuple(convert(item, args[0], where) for item in value)
        if len(args) == len(value):
            return tuple(convert(item, arg, where) for item, arg in zip(value, args, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {convert(key, args[0], where): convert(item, args[1], where) for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{where} = {shown(value)}; it is beyond what floats hold") from None
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    expected = 'a list, such as ["a", "b"]' if hint == tuple[str | int, ...] else type_name(hint)
    raise ValueError(f"{where} = {shown(value)}; expected {expected}")


def _convert_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    """One of several types: the value's own, a tuple for lists, or else the first other one."""
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) == 1:
        return convert(value, kinds[0], where)
    listed = isinstance(value, (list, tuple))
    fitting = [kind for kind in kinds if (typing.get_origin(kind) is tuple) == listed]
    own = [kind for kind in kinds if type(value) is kind]
    try:
        return convert(value, (own or fitting or kinds)[0], where)
    except ValueError:
        pair = kinds == (int, tuple[int, int])
        expected = f"a {type_name(int | tuple[int, int])}" if pair else " or ".join(map(type_name, kinds))
        raise ValueError(f"{where} = {shown(value)}; expected {expected}") from None


def _convert_fields(values: Mapping[str, Any], cls: Any, where: str) -> Any:
    """A dataclass from a mapping of its fields; those with a default may be missing."""
    prefix = f"{where}." if where else ""
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ValueError(f"no setting {shown(prefix + str(key))}; {nearest(str(key), hints)}")
    fields = {key: convert(value, hints[key], prefix + key) for key, value in values.items()}
    try:
        return cls(**fields)
    except TypeError as error:
        raise ValueError(f"{where or 'configuration'}: {str(error).partition('() ')[2] or error}") from None


def shown(value: object) -> str:
    """The `repr` of a value for an error, cut to 120 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits; lists in lists
        text = f"a {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:117]}..."


def type_name(hint: Any) -> str:
    """How an error names a type: `int`, `tuple[float, ...]`."""
    if hint == int | tuple[int, int]:
        return "whole number, or list of two such as [384, 640]"
    return hint.__name__ if isinstance(hint, type) and typing.get_origin(hint) is None else str(hint)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the names in `known` that are near it, or all of them."""
    import difflib  # for wrong names only

    names = sorted(known)
    near = [known for known in names if known.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"near ones: {', '.join(near)}" if near else f"known: {', '.join(names)}"


def first_few(names: Iterable[str], limit: int = 4) -> str:
    """The first names, for an error, each cut to 100 characters, and how many more there are."""
    listed = [name if len(name) <= 100 else f"{name[:97]}..." for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
