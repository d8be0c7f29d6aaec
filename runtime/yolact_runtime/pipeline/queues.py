"""The queue between the threads of a pipeline: bounded, batching, and closable from any thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):  # noqa: N818 - the normal end of a queue, not an error
    """The queue accepts nothing more, or is closed and empty."""


class Channel(Generic[T]):
    """A first-in first-out queue for any number of threads.

    Args:
        capacity: `put` waits while the queue holds this many; None for no bound.
        items: Initial content.
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
        """Append `item`, waiting until there is space.

        Raises:
            Closed: the channel is closed, or was closed while waiting.
        """
        with self._freed:
            while not self._closed and self._capacity is not None and len(self._items) >= self._capacity:
                self._freed.wait()
            self._append(item)

    def put_newest(self, item: T) -> int:
        """Append `item` without waiting; if the channel is full, drop the oldest.

        Returns:
            The number of dropped items.

        Raises:
            Closed: the channel is closed.
        """
        with self._freed:
            dropped = 0
            while not self._closed and self._capacity is not None and len(self._items) >= self._capacity:
                self._items.popleft()
                dropped += 1
            self._append(item)
            return dropped

    def wait_until_empty(self) -> None:
        """Wait until everything is taken, or the channel is closed."""
        with self._freed:
            while self._items and not self._closed:
                self._freed.wait()

    def get(self) -> T:
        """Remove and return the oldest item, waiting for one.

        Raises:
            Closed: the channel is closed and empty.
        """
        return self.take()[1]

    def take(self) -> tuple[int, T]:
        """Same as `get`, with a ticket that counts the items taken so far: 0, 1, 2, ..."""
        with self._filled:
            while not self._items:
                if self._closed:
                    raise Closed
                self._filled.wait()
            return self._pop()

    def take_batch(self, size: int, deadline: float) -> list[T]:
        """The `size` oldest items; fewer if the oldest has waited `deadline` seconds or it is closed.

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
                # Another waiting thread may have missed the signal for what is left.
                self._filled.notify()
            return batch

    def close(self, discard: bool = False) -> None:
        """Accept nothing more, and wake all waiting threads; with `discard`, drop the content."""
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
