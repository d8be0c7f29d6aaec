"""Plain values as annotated types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from yolact_runtime.typed import convert, first_few, nearest, type_name


@dataclass(frozen=True)
class Inner:
    side: int
    ratio: float = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, float, 3.0),
        (1e5, int, 100_000),
        (None, int | None, None),
        (3, int | None, 3),
        ([1, 2], tuple[float, float], (1.0, 2.0)),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ("sgd", Literal["sgd", "adamw"], "sgd"),
        ({"inner": {"side": 2}, "names": ["a"]}, Outer, Outer(Inner(2), ("a",))),
    ],
)
def test_values(value: Any, hint: Any, expected: Any) -> None:
    result = convert(value, hint)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (True, int, r"train\.x = True; expected int"),
        (1.5, int, r"train\.x = 1\.5; expected int"),
        ("3", float, r"train\.x = '3'; expected float"),
        ([1, 2, 3], tuple[float, float], r"train\.x = \[1, 2, 3\]; expected tuple\[float, float\]"),
        ("rmsprop", Literal["sgd", "adamw"], r"train\.x = 'rmsprop'; allowed: sgd, adamw"),
        ({"sides": 3}, Inner, r"no setting 'train\.x\.sides'; near ones: side"),
        ({}, Inner, r"train\.x: missing 1 required positional argument: 'side'"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(value, hint, "train.x")


def test_texts_for_errors() -> None:
    assert type_name(int) == "int"
    assert type_name(tuple[int, ...]) == "tuple[int, ...]"
    assert nearest("lr", ["train.lr", "train.steps"]) == "near ones: train.lr"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert first_few("abcd") == "a, b, c, d"
    assert first_few("abcdef") == "a, b, c, d and 2 more"
