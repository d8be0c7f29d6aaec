"""Image paths read from a stream, such as standard input."""

from __future__ import annotations

import codecs
import io
import os
import select
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

from yolact_runtime.errors import YolactError
from yolact_runtime.frames import Frame, Source, failed_frame
from yolact_runtime.sources.images import image_frame

_BLOCK = 1 << 16
_TICK = 0.2
_LONGEST = 1 << 15  # bytes of a path; systems allow 4096, or 32,767 characters


class ListSource(Source):
    """Images whose paths come through a stream; each is processed as soon as its line arrives.

    Blank lines are skipped. There are no comments: a path may begin with `#` or with a space.

    Args:
        stream: A binary stream; not closed here.
        null: Paths end in NUL (`find -print0`) instead of a line end.

    Attributes:
        first: The first name, once it is read.
    """

    def __init__(self, stream: BinaryIO, null: bool = False) -> None:
        self._stream = stream
        self._end = b"\0" if null else b"\n"
        self._closed = threading.Event()
        self._all: list[str] | None = None
        self.first: str | None = None

    def __iter__(self) -> Iterator[Frame]:
        names = self._names(self._lines(self._read)) if self._all is None else iter(self._all)
        for index, name in enumerate(names):
            self.first = name if index == 0 else self.first
            yield self._frame(index, name)

    def read_all(self) -> list[str]:
        """Read the names up to the end of the stream; the iteration has them as well."""
        if self._all is None:
            self._all = list(self._names(self._lines(self._read)))
            self.total = len(self._all)
            self.first = self._all[0] if self._all else None
        return self._all

    def close(self) -> None:
        self._closed.set()

    def known_names(self) -> list[str]:
        """All names, if the stream is a file; none if they arrive through a pipe."""
        if self._all is not None:
            return self._all
        try:
            handle = self._stream.fileno()
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return []
            position = os.lseek(handle, 0, os.SEEK_CUR)
            names = list(self._names(self._lines(lambda: os.read(handle, _BLOCK))))
            os.lseek(handle, position, os.SEEK_SET)
        except (AttributeError, OSError):  # io.UnsupportedOperation is an OSError
            return []
        return names

    def _names(self, lines: Iterator[bytes]) -> Iterator[str]:
        """The name in each line, without blank lines and what Windows adds: a byte order mark, CR before LF.

        Raises:
            YolactError: the list is in UTF-16.
        """
        for number, line in enumerate(lines):
            if number == 0:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise YolactError("the list on standard input is in UTF-16; write it in UTF-8")
                line = line.removeprefix(codecs.BOM_UTF8)
            name = os.fsdecode(line if self._end == b"\0" else line.removesuffix(b"\r"))
            if name.strip():
                yield name

    def _frame(self, index: int, name: str) -> Frame:
        """The frame of one path; what `find -print0` writes has no line ends, and its error says so."""
        first, zero, _ = name.partition("\0")
        if len(first) >= _LONGEST:
            first = first[:100]
            error = YolactError(f"the path that begins with {first} is longer than any file's")
            return failed_frame(index, first, error)
        if not zero:
            return image_frame(index, name)
        error = YolactError(
            f"the path that begins with {first} contains a zero byte; add --null to read such lists"
        )
        return failed_frame(index, first, error)

    def _lines(self, read: Callable[[], bytes]) -> Iterator[bytes]:
        """The lines that are not empty; very long ones are cut off."""
        rest = b""
        while block := read():
            *lines, rest = (rest + block).split(self._end)
            rest = rest[: 2 * _LONGEST]
            yield from filter(None, lines)
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
