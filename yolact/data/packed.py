"""A list that processes share: its items are pickled in one buffer.

Python's own lists cannot be shared after a fork: reading an object counts a reference in it, which copies its
page of memory to the reader.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast, overload

import numpy as np
import torch

T = TypeVar("T")


class PackedList(Sequence[T]):
    """An immutable list of items that pickle. Each access makes a new copy of an item.

    Its memory is only read: forked processes share it, and PyTorch passes it on as shared memory to processes
    that are started in another way.
    """

    def __init__(self, items: Iterable[T] = ()) -> None:
        buffer, ends = bytearray(), [0]
        for item in items:
            buffer += pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
            ends.append(len(buffer))
        # Tensors, as these are what PyTorch shares.
        self._bytes = torch.from_numpy(np.frombuffer(buffer, np.uint8).copy())
        self._spans = torch.tensor(
            [ends[:-1], ends[1:]], dtype=torch.int64
        )  # (2, n): first byte, past the last

    def __len__(self) -> int:
        return self._spans.shape[1]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> PackedList[T]: ...
    def __getitem__(self, index: int | slice) -> T | PackedList[T]:
        """An item, or a list of some of them with the same memory."""
        if isinstance(index, slice):
            part: PackedList[T] = PackedList()
            part._bytes = self._bytes
            part._spans = self._spans[:, list(range(len(self)))[index]]
            return part
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} items")
        start, end = self._spans[:, index].tolist()
        item: T = pickle.loads(self._bytes[start:end].numpy().data)
        return item

    def __iter__(self) -> Iterator[T]:
        return map(self.__getitem__, range(len(self)))


class _Pickled(Sequence[Any]):
    """A list inside an item of a `PackedList`, unpickled when it is read: without that, an item is small."""

    def __init__(self, content: bytes, count: int) -> None:
        self._content, self._count = content, count
        self._items: list[Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Pickled, (self._content, self._count)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if self._items is None:
            self._items = pickle.loads(self._content)
        return self._items[index]


def pickled(items: list[T]) -> list[T]:
    """The same list for reading; it is unpickled when it is first read."""
    packed: Any = _Pickled(pickle.dumps(list(items), pickle.HIGHEST_PROTOCOL), len(items))
    return cast("list[T]", packed)
