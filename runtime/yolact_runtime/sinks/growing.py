"""Files that grow during a run and never contain part of an entry."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from yolact_runtime.errors import YolactError
from yolact_runtime.files import atomic_path, write_all


class GrowingFile:
    """Appends whole entries to a file, unbuffered.

    Args:
        file: Opened for reading and writing bytes without a buffer, at its end.
        name: For messages.
        tail: Always follows the last entry, so that closing writes nothing: the disk may be full by then.
    """

    def __init__(self, file: BinaryIO, name: str | Path, tail: bytes = b"") -> None:
        self.size = file.tell()
        self._name = name
        self._file = file
        self._tail = tail

    def append(self, data: bytes) -> None:
        """Append all of `data`, or nothing and raise a YolactError."""
        try:
            self._write(data + self._tail)
        except OSError as error:
            self.truncate(self.size)
            raise YolactError(f"cannot write {self._name}: {error.strerror or error}") from error
        self.size += len(data)
        self._file.seek(self.size)

    def truncate(self, size: int) -> None:
        """Drop the entries after the first `size` bytes."""
        # If this fails, too, the disk is gone, and the error that led here says so.
        with contextlib.suppress(OSError):
            self._file.truncate(size + len(self._tail))
            self._file.seek(size)
            self._write(self._tail)
            self._file.seek(size)
        self.size = size

    def change_tail(self, tail: bytes) -> None:
        """Write another tail, which must not be shorter."""
        self._tail = tail
        self.append(b"")

    def drop_tail(self) -> None:
        """Make the tail an entry, so that other data may follow it."""
        self.size += len(self._tail)
        self._tail = b""
        self._file.seek(self.size)

    def blocks(self) -> Iterator[bytes]:
        """The entries, in blocks of at most a megabyte."""
        for start in range(0, self.size, 1 << 20):
            self._file.seek(start)
            yield self._file.read(min(1 << 20, self.size - start))

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        write_all(self._file, data, self._name)


class GrowingJson:
    """A JSON file with one list that grows under a temporary name until `close`.

    Args:
        path: The file; its previous content stays until `close`. Standard output and pipes get all then.
        head: JSON before the opening bracket of the list.
        tail: JSON after its closing bracket.

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
        """Current size in bytes, without the tail."""
        return self._file.size

    def append(self, entries: list[str]) -> None:
        """Append list elements, one or more in each string, as JSON; all, or none and a YolactError."""
        if entries:
            comma = "" if self.size == self._empty else ", "
            self._file.append((comma + ", ".join(entries)).encode())

    def truncate(self, size: int) -> None:
        """Drop the entries after the first `size` bytes."""
        self._file.truncate(size)

    def change_tail(self, tail: str) -> None:
        """Replace the JSON after the closing bracket; the new one must not be shorter."""
        self._file.change_tail(f"]{tail}".encode())

    def close(self, rest: Iterable[bytes] = ()) -> None:
        """Append `rest` and rename the file to `path`; on a YolactError the previous file is kept."""
        with self._stack:
            self._file.drop_tail()
            for block in rest:
                self._file.append(block)

    def discard(self) -> None:
        """Remove the temporary file; the previous file stays."""
        self._stack.__exit__(YolactError, YolactError("discarded"), None)
