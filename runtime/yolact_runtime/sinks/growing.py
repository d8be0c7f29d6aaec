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
        file: Opened for binary writing without a buffer, at its end.
        name: For messages.
    """

    def __init__(self, file: BinaryIO, name: str | Path) -> None:
        self.name = name
        self.size = file.tell()
        self._file = file

    def append(self, data: bytes) -> None:
        """Append all of `data`, or nothing.

        Raises:
            YolactError: it cannot be written.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            self.truncate(self.size)
            raise YolactError(f"cannot write {self.name}: {error.strerror or error}") from error
        self.size += len(data)

    def truncate(self, size: int) -> None:
        """Go back to when the file had `size` bytes."""
        # Where even this fails, the disk is gone, and the error that led here says so.
        with contextlib.suppress(OSError):
            self._file.truncate(size)
            self._file.seek(size)
        self.size = size

    def close(self) -> None:
        self._file.close()


class GrowingJson:
    """A JSON file with one list that grows. It has its name only once it is finished.

    Args:
        path: The file; what it holds before stays until `close`.
        head: JSON up to the list's bracket.
        tail: JSON after the list's bracket.

    Raises:
        YolactError: the folder cannot be written to.
    """

    def __init__(self, path: Path, head: str = "", tail: str = "") -> None:
        self.path = path
        self._tail = f"]{tail}".encode()
        self._stack = contextlib.ExitStack()
        temporary = self._stack.enter_context(atomic_path(path))
        with self._stack.pop_all() as unfinished:
            self._file = GrowingFile(temporary.open("r+b", buffering=0), path)
            self._file.append(f"{head}[".encode())
            self._empty = self._file.size
            self._stack = unfinished.pop_all()

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
        """Go back to when the file had `size` bytes."""
        self._file.truncate(size)

    def close(self) -> None:
        """End the list and give the file its name.

        Raises:
            YolactError: it cannot be written; then what had the name before keeps it.
        """
        with self._stack:
            try:
                self._file.append(self._tail)
            finally:
                self._file.close()
