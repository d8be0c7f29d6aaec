"""Settings from `section.field=value` assignments, and the check of their values."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from yolact_runtime.errors import UsageError
from yolact_runtime.typed import convert, nearest, shown
from yolact_runtime.untrusted import LIMITS, beyond, check_text, limit, parse_json

T = TypeVar("T")
# The lowest and highest value of each setting of a dataclass; a highest that is a name is that limit's.
Ranges = Mapping[str, tuple[float, "float | str"]]


def override(config: T, assignments: Sequence[str]) -> T:
    """Apply `section.field=value` assignments, such as `train.lr=5e-4`, checked by name and type.

    Values are JSON (numbers, true, [1, 2]), or else strings.

    Raises:
        UsageError: not an assignment, an unknown field (lists similar ones), or the wrong type.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment!r}: expected section.field=value, such as train.lr=5e-4")
        try:
            config = _assign(config, key.strip().split("."), _parse(text.strip()), key.strip(), type(config))
        except ValueError as error:
            raise UsageError(str(error)) from None
    return config


def check_other_classes(classes: Sequence[object], assignments: Sequence[str]) -> None:
    """Raise a UsageError if `dataset.other_classes` is assigned while all classes are learned.

    Args:
        classes: The value of `dataset.classes`.
        assignments: As for `override`.
    """
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if key.strip() == "dataset.other_classes" and not classes:
            raise UsageError(
                f"dataset.other_classes = {shown(value.strip())}, but all classes are learned, so that no"
                " object is of another one; name those to learn: --set 'dataset.classes=[\"NAME\", ...]'"
            )


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The settings in which two dataclasses of one type differ: dotted names to old and new values."""
    found: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(old):
        name = f"{prefix}{field.name}"
        a, b = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(a):
            found |= differences(a, b, f"{name}.")
        elif a != b:
            found[name] = (a, b)
    return found


def _parse(text: str) -> Any:
    """The JSON value of `text`, or else `text` itself."""
    try:
        return parse_json(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _assign(owner: T, keys: list[str], value: Any, full: str, root: type) -> T:
    """`owner` with the field that `keys` lead to replaced; `full` is the whole name, for errors."""
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
    """Dotted names of all settings in the dataclass `cls`."""
    names: list[str] = []
    for name, hint in typing.get_type_hints(cls).items():
        full = f"{prefix}.{name}" if prefix else name
        names += _settings(hint, full) if dataclasses.is_dataclass(hint) else [full]  # type: ignore[arg-type]
    return names


def check(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise a UsageError unless `holds`."""
    if not holds:
        raise UsageError(f"{name} = {shown(value)}; allowed: {allowed}")


def check_ranges(owner: object, section: str, ranges: Ranges) -> None:
    """Check that the settings of a dataclass are finite numbers within their ranges.

    Args:
        owner: The dataclass; a setting may be a number, or tuples of numbers.
        section: Where it is in the configuration, for errors.
        ranges: The settings to check.

    Raises:
        UsageError: one is not; names it, its value and its range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(owner, name)
        highest, allowed = (limit(high), _beyond(high)) if isinstance(high, str) else (high, "")
        fits = all(type(number) in (int, float) and low <= number <= highest for number in _numbers(value))
        check(fits, f"{section}.{name}", value, f"{_number(low)} to {_number(highest)}{allowed}")


def check_plain_text(value: str, name: str) -> None:
    """Raise a UsageError if a text is too long, or no file can have it as its name."""
    check(len(value) <= limit("name"), name, value, f"at most {beyond('name')}")
    try:
        check_text(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    check("\0" not in value, name, value, "text without zero bytes")


def _numbers(value: object) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _numbers(item)
    else:
        yield value


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else f"{value:g}"


def _beyond(name: str) -> str:
    return f" ({LIMITS[name].variable} sets another limit)"
