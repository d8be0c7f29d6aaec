"""Files that grow while a run goes on, and never hold half of an entry."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO

from yolact_runtime.errors import YolactError
from yolact_runtime.files import atomic_path


class GrowingFile:
    """Appends whole entries to a file, past every buffer of this process.

    Args:
        file: Opened for reading and writing bytes without a buffer, at its end.
        name: For messages.
        tail: Follows the last entry at any moment, so that nothing is left to write in the end, when the disk
            may be full.
    """

    def __init__(self, file: BinaryIO, name: str | Path, tail: bytes = b"") -> None:
        self.size = file.tell()
        self._name = name
        self._file = file
        self._tail = tail

    def append(self, data: bytes) -> None:
        """Append all of `data`, or nothing.

        Raises:
            YolactError: it cannot be written.
        """
        try:
            self._write(data + self._tail)
        except OSError as error:
            self.truncate(self.size)
            raise YolactError(f"cannot write {self._name}: {error.strerror or error}") from error
        self.size += len(data)
        self._file.seek(self.size)

    def truncate(self, size: int) -> None:
        """Go back to when the file had `size` bytes before its tail."""
        # Where even this fails, the disk is gone, and the error that led here says so.
        with contextlib.suppress(OSError):
            self._file.truncate(size + len(self._tail))
            self._file.seek(size)
            self._write(self._tail)
            self._file.seek(size)
        self.size = size

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


class GrowingJson:
    """A JSON file with one list that grows. It has its name only once it is closed.

    Args:
        path: The file; what it holds before stays until `close`.
        head: JSON up to the list's bracket.
        tail: JSON after the list's bracket.

    Raises:
        YolactError: the folder cannot be written to.
    """

    def __init__(self, path: Path, head: str = "", tail: str = "") -> None:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(path))
            raw = stack.enter_context(temporary.open("r+b", buffering=0))
            self._file = GrowingFile(raw, path, f"]{tail}".encode())
            self._file.append(f"{head}[".encode())
            self._empty = self._file.size
            self._stack = stack.pop_all()

    @property
    def size(self) -> int:
        """In bytes, so far."""
        return self._file.size

    def append(self, entries: list[str]) -> None:
        """Append elements, each as JSON; all or nothing.

        Raises:
            YolactError: they cannot be written.
        """
        if entries:
            comma = "" if self.size == self._empty else ", "
            self._file.append((comma + ", ".join(entries)).encode())

    def truncate(self, size: int) -> None:
        """Go back to when `size` was this."""
        self._file.truncate(size)

    def close(self) -> None:
        """Give the file its name.

        Raises:
            YolactError: it cannot be; then what had the name before keeps it.
        """
        self._stack.close()

    def discard(self) -> None:
        """Remove the file; what had the name before keeps it."""
        unwanted = YolactError("nobody wants this file")
        self._stack.__exit__(YolactError, unwanted, None)
