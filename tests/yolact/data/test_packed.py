from __future__ import annotations

import pickle

import pytest

from yolact.data.packed import PackedList, pickled

ITEMS = [{"a": 1, "b": [1.5, None]}, "ü", (3, b"x"), []]


def test_items_slices_and_ends() -> None:
    packed = PackedList(ITEMS)
    assert list(packed) == ITEMS and len(packed) == 4
    assert packed[-1] == [] and packed[2] == (3, b"x")
    assert list(packed[1:3]) == ITEMS[1:3] and list(packed[::-2]) == ITEMS[::-2] and not packed[9:]
    assert list(packed[1:][1:]) == ITEMS[2:]
    assert packed[1:]._bytes.data_ptr() == packed._bytes.data_ptr()
    for index in (4, -5):
        with pytest.raises(IndexError):
            packed[index]
    assert list(PackedList()) == []


def test_each_access_makes_a_copy() -> None:
    packed = PackedList(ITEMS)
    packed[0]["a"] = 2
    assert packed[0]["a"] == 1


def test_a_list_inside_an_item_is_read_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = PackedList([(1, pickled([{"x": 1}, {"x": 2}])), (2, pickled([]))])
    with monkeypatch.context() as patch:
        first, _ = packed
        patch.setattr(pickle, "loads", lambda *_: pytest.fail("was unpickled"))
        assert [number for number, _ in (first,)] == [1] and len(first[1]) == 2
    assert first[1][1] == {"x": 2} and list(first[1]) == [{"x": 1}, {"x": 2}] and first[1][:1] == [{"x": 1}]
    again = pickle.loads(pickle.dumps(packed))
    assert list(again[0][1]) == [{"x": 1}, {"x": 2}] and list(again[1][1]) == []
