"""Files of single images, whose failures concern no other image."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from yolact_runtime.errors import ItemError, UsageError, YolactError
from yolact_runtime.files import atomic_path
from yolact_runtime.frames import ResumableSink
from yolact_runtime.sinks.names import FreeNames

# Errors of a name, while the folder takes others: too long, a folder or a circle of links, not allowed.
_OF_THE_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EILSEQ}
_AT_ONCE = 8  # files of one image that are written at the same time
_FORBIDDEN = {errno.EACCES, errno.EPERM}


class FolderSink(ResumableSink):
    """A sink with files of its own for each image.

    Attributes:
        folder: Where they are.
        what: They, for messages.
    """

    folder: Path
    what: str

    def written(self) -> list[str]:
        return [] if self.is_empty() else [f"{self.what} in {self.folder}"]

    def is_empty(self) -> bool:
        """Whether the folder has no files, or is not there; hidden ones, such as locks, do not count."""
        try:
            with os.scandir(self.folder) as entries:
                return all(entry.name.startswith(".") for entry in entries)
        except OSError:
            return True


def write_item(path: Path, data: bytes, names: FreeNames | None = None) -> None:
    """Write the file of one image, whole or not at all.

    Args:
        path: The file.
        data: Its content.
        names: Where its name is from, if it is not the user's.

    Raises:
        ItemError: its name is to blame, or what is there.
        YolactError: the folder cannot be written to.
    """
    try:
        with item_output(path), atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except ItemError:
        if names is not None:
            names.give_back()
        raise


def write_items(files: Sequence[tuple[Path, bytes]], names: FreeNames) -> None:
    """Write several files of one image: all of them, or none if one of their names is to blame.

    Args:
        files: Each path and its content.
        names: As for `write_item`.

    Raises:
        ItemError, YolactError: as `write_item`.
    """
    from concurrent.futures import ThreadPoolExecutor  # which runs without several files do without

    # Each file waits for the disk, several at once hardly longer than one.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        writes = [pool.submit(write_item, path, data) for path, data in files]
    errors = [write.exception() for write in writes]
    found = sorted((error for error in errors if error), key=lambda error: isinstance(error, ItemError))
    if found and isinstance(found[0], ItemError):
        names.give_back()
        for (path, _), error in zip(files, errors, strict=True):
            if error is None:
                with contextlib.suppress(OSError):
                    path.unlink()
    if found:
        raise found[0]


@contextlib.contextmanager
def item_output(path: Path) -> Iterator[None]:
    """Turn errors of the block into an ItemError if only the file at `path` is to blame."""
    try:
        yield
    except YolactError as error:
        cause = error.__cause__
        if isinstance(cause, OSError):
            number = cause.errno
            own = number in _OF_THE_NAME or (number in _FORBIDDEN and os.access(path.parent, os.W_OK))
        else:  # it is a folder, a disk, a circle of links; or its name has no bytes here
            own = isinstance(error, UsageError) or isinstance(cause, UnicodeError) or cause is None
        if not own:
            raise
        raise ItemError(str(error)) from error
