"""Holding out images for validation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact.data.split import held_out
from yolact_runtime.errors import UsageError


def records(count: int, first: int = 1) -> list[dict]:
    return [{"id": first + i, "file_name": f"day {i % 3}/{i:04d}.jpg"} for i in range(count)]


@given(st.integers(2, 60), st.floats(0.001, 0.9), st.integers(0, 5), st.randoms())
def test_the_part_depends_on_names_and_seed_only(count: int, fraction: float, seed: int, random) -> None:
    images = records(count)
    held = held_out(images, fraction, seed)
    assert len(held) == min(max(1, round(fraction * count)), count - 1)
    random.shuffle(images)
    assert held_out(images, fraction, seed) == held
    assert held_out(records(count, first=501), fraction, seed) == {number + 500 for number in held}


def test_seeds_differ_and_a_larger_part_contains_the_smaller_one() -> None:
    images = records(100)
    assert held_out(images, 0.1, 0) != held_out(images, 0.1, 1)
    assert held_out(images, 0.1, 0) < held_out(images, 0.3, 0)


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (9, 0.0), (9, 1.0), (9, -0.1), (9, float("nan"))])
def test_what_cannot_be_split_is_one_line(count: int, fraction: float) -> None:
    with pytest.raises(UsageError, match="--val-fraction"):
        held_out(records(count), fraction, 0)
