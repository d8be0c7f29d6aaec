"""Ids, numbers and flags of annotation files, as other people's tools write them."""

from __future__ import annotations

import re
import reprlib
from typing import Any

_WHOLE = re.compile(r"\s*([+-]?\d{1,40})(\.0*)?\s*", re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?(\d{1,40}\.?\d*|\.\d+)([eE][+-]?\d{1,4})?\s*", re.ASCII)
_FLAGS = {"true": True, "false": False}
# From here on, floats do not hold every whole number: two ids may have become one.
_EXACT = 2**53

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxarray = 3, 10, 10, 10
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


def shown(value: Any, most: int = 100) -> str:
    """A value of a file for a message, in at most `most` characters, however long or deep it is."""
    text = _SHORT.repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def whole_number(value: Any) -> int | None:
    """The whole number that `value` is or spells: 3, 3.0, "3" or "3.0"; None for anything else."""
    if type(value) is int:
        return value
    if type(value) is float:
        return int(value) if value.is_integer() and abs(value) < _EXACT else None
    match = _WHOLE.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) if match else None


def real_number(value: Any) -> float | None:
    """The number that `value` is or spells, which may be NaN or infinite; None for anything else."""
    if type(value) in (int, float):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def flag(value: Any) -> bool | None:
    """The truth value that `value` is or spells: 0, 1, "0", "true", ..; absent is False; else None."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _FLAGS:
        return _FLAGS[value.strip().lower()]
    number = whole_number(value)
    return bool(number) if number in (0, 1) else None
