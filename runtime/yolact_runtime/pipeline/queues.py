"""Queues between threads whose waits end when the work does."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):  # noqa: N818 - the ordinary end of a queue, not an error
    """Nothing more can be put into, or got from, this queue."""


class Channel(Generic[T]):
    """A first-in first-out queue for any number of threads.

    Args:
        capacity: `put` waits while this many are held; None for no bound.
        items: What it holds at first.
    """

    def __init__(self, capacity: int | None = None, items: Iterable[T] = ()) -> None:
        self._capacity = capacity
        self._items: deque[tuple[float, T]] = deque((0.0, item) for item in items)
        self._taken = 0
        self._closed = False
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._freed = threading.Condition(lock)

    def put(self, item: T) -> None:
        """Append `item`, once there is room.

        Raises:
            Closed: the channel is closed, or was while waiting.
        """
        with self._freed:
            while not self._closed and self._capacity is not None and len(self._items) >= self._capacity:
                self._freed.wait()
            self._append(item)

    def put_newest(self, item: T) -> int:
        """Append `item` without waiting: where there is no room, the oldest are thrown out.

        Returns:
            How many were thrown out.

        Raises:
            Closed: the channel is closed.
        """
        with self._freed:
            thrown = 0
            while not self._closed and self._capacity is not None and len(self._items) >= self._capacity:
                self._items.popleft()
                thrown += 1
            self._append(item)
            return thrown

    def get(self) -> T:
        """The oldest, once there is one.

        Raises:
            Closed: the channel is closed and empty.
        """
        return self.take()[1]

    def take(self) -> tuple[int, T]:
        """The oldest, as `get`, with its place in the order of leaving: 0, 1, 2, ..."""
        with self._filled:
            while not self._items:
                if self._closed:
                    raise Closed
                self._filled.wait()
            return self._pop()

    def take_batch(self, size: int, deadline: float) -> list[T]:
        """The `size` oldest, or fewer when the oldest has waited for `deadline` seconds or no more can come.

        Raises:
            Closed: the channel is closed and empty.
        """
        with self._filled:
            while True:
                if not self._items:
                    if self._closed:
                        raise Closed
                    self._filled.wait()
                    continue
                left = self._items[0][0] + deadline - time.monotonic()
                if len(self._items) >= size or self._closed or left <= 0:
                    break
                self._filled.wait(left)
            batch = [self._pop()[1] for _ in range(min(size, len(self._items)))]
            if self._items:
                # Whoever else waits has slept through the signal of what is left.
                self._filled.notify()
            return batch

    def close(self, discard: bool = False) -> None:
        """Take nothing more in; with `discard`, throw out what is held. Wakes everybody who waits."""
        with self._filled:
            self._closed = True
            if discard:
                self._items.clear()
            self._filled.notify_all()
            self._freed.notify_all()

    def _append(self, item: T) -> None:
        if self._closed:
            raise Closed
        self._items.append((time.monotonic(), item))
        self._filled.notify()

    def _pop(self) -> tuple[int, T]:
        item = self._items.popleft()[1]
        self._taken += 1
        self._freed.notify()
        return self._taken - 1, item


class Reorder(Generic[T]):
    """Takes items in any order and gives them in the order of their tickets 0, 1, 2, ..., for one reader."""

    def __init__(self) -> None:
        self._items: dict[int, T] = {}
        self._next = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, ticket: int, item: T) -> None:
        """Take `item` in. How many can wait here is for the caller to bound.

        Raises:
            Closed: the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise Closed
            self._items[ticket] = item
            if ticket == self._next:
                self._changed.notify()

    def get(self) -> T:
        """The item of the next ticket, once it is there.

        Raises:
            Closed: the queue is closed and that item is not there.
        """
        with self._changed:
            while self._next not in self._items:
                if self._closed:
                    raise Closed
                self._changed.wait()
            self._next += 1
            return self._items.pop(self._next - 1)

    def close(self, discard: bool = False) -> None:
        """Take nothing more in; with `discard`, throw out what is held."""
        with self._changed:
            self._closed = True
            if discard:
                self._items.clear()
            self._changed.notify_all()
