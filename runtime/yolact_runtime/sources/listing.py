"""Image paths read from a stream, such as standard input."""

from __future__ import annotations

import io
import os
import select
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

from yolact_runtime.errors import YolactError
from yolact_runtime.frames import Frame, Source, failed_frame
from yolact_runtime.sources.images import image_frame

_BLOCK = 1 << 16
_TICK = 0.2


class ListSource(Source):
    """Images whose paths come through a stream; each is processed as soon as its line arrives.

    Blank lines are skipped. There are no comments: a path may begin with `#` or with a space.

    Args:
        stream: A binary stream; not closed here.
        null: Paths end in NUL (`find -print0`) instead of a line end.
    """

    def __init__(self, stream: BinaryIO, null: bool = False) -> None:
        self._stream = stream
        self._end = b"\0" if null else b"\n"
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        for line in self._lines():
            name = os.fsdecode(line if self._end == b"\0" else line.removesuffix(b"\r"))
            if name.strip():
                yield self._frame(index, name)
                index += 1

    def close(self) -> None:
        self._closed.set()

    def _frame(self, index: int, name: str) -> Frame:
        """The frame of one path; what `find -print0` writes has no line ends, and its error says so."""
        first, zero, _ = name.partition("\0")
        if not zero:
            return image_frame(index, name)
        error = YolactError(
            f"the path that begins with {first} contains a zero byte; add --null to read such lists"
        )
        return failed_frame(index, first, error)

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        while block := self._read():
            *lines, rest = (rest + block).split(self._end)
            yield from lines
        if rest and not self._closed.is_set():
            yield rest

    def _read(self) -> bytes:
        """The bytes that have arrived; empty at the end of the stream and after `close`."""
        try:
            handle = self._stream.fileno()
        except (AttributeError, io.UnsupportedOperation):
            return b"" if self._closed.is_set() else self._stream.read(_BLOCK)
        # A blocking read cannot be interrupted from another thread. On Windows, select takes only sockets.
        while sys.platform != "win32" and not select.select([handle], [], [], _TICK)[0]:
            if self._closed.is_set():
                return b""
        return b"" if self._closed.is_set() else os.read(handle, _BLOCK)
