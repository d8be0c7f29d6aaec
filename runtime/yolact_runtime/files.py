"""Writing files whole or not at all, reading JSON, and hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.temporary import new_file, new_folder
from yolact_runtime.untrusted import parse_json, read_bytes

# Standard output in place of a file.
STDOUT = "-"
# Errors of writing, whichever file is named: copying names the one that is read.
_OF_WRITING = {errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
# The mask can only be read by setting it: two threads at once would leave another one behind.
_UMASK = threading.Lock()
READER_WAIT = 10.0  # seconds that a named pipe waits for its reader


@contextlib.contextmanager
def writing(target: object) -> Iterator[None]:
    """Turn an OSError of the block into a YolactError; a broken pipe passes.

    It says that `target` cannot be written, unless the error names another file, such as one that is read.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except UnicodeEncodeError as error:
        raise YolactError(f"cannot write {target}: no file can have this name here") from error
    except OSError as error:
        reason = error.strerror or error
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        if name and error.errno not in _OF_WRITING and not _belongs(name, str(target)):
            raise YolactError(f"cannot open {name}: {reason}; {target} is not written") from error
        raise YolactError(f"cannot write {target}: {reason}") from error


def _belongs(name: str, target: str) -> bool:
    """Whether `name` is `target`, a folder that it is in, or one of the temporary files next to it."""
    real, named = Path(os.path.realpath(target)), Path(name).absolute()
    if name == target or real.is_relative_to(named):
        return True
    return named.is_relative_to(real.parent) and named.relative_to(real.parent).parts[0].startswith(".")


def follow_links(path: str | Path) -> Path:
    """The file behind a symbolic link, which need not exist; any other path as it is.

    Raises:
        YolactError: the links form a circle.
    """
    path = Path(path)
    if not path.is_symlink():
        return path
    real = Path(os.path.realpath(path))
    if real.is_symlink():
        raise YolactError(f"cannot write {path}: its symbolic links form a circle")
    return real


def stream_of(path: str | Path) -> int | Path | None:
    """Where to write for a path that is not a file of its own and must not be replaced by one.

    Returns:
        The number of a file descriptor for `-`, `/dev/stdout` and `/dev/fd/N`; the path of a pipe or device;
        None for a regular file and for a path where nothing is.

    Raises:
        YolactError: it is a folder, a disk or a socket.
    """
    path = Path(path)
    with writing(path):
        if (descriptor := _descriptor(path)) is not None:
            return descriptor
        mode = path.stat().st_mode if path.exists() else 0
    if stat.S_ISDIR(mode):
        raise UsageError(f"cannot write {path}: it is a folder; name a file")
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise YolactError(f"cannot write {path}: it is a {'disk' if stat.S_ISBLK(mode) else 'socket'}")
    return path if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) else None


def _descriptor(path: Path) -> int | None:
    """The file descriptor that a path such as `-` or `/dev/stdout` means, also through links."""
    if str(path) == STDOUT:
        return 1
    own = {"/dev/fd", os.path.realpath("/proc/self/fd")}
    for _ in range(40):  # as many links as Linux follows
        folder = os.path.realpath(path.parent)
        if path.name.isdecimal() and folder in own:
            return int(path.name)
        if not path.is_symlink():
            break
        path = Path(folder) / path.readlink()
    return None


def is_stdout(path: str | Path | None) -> bool:
    """Whether a path names standard output, which then has nothing else: `-` or `/dev/stdout`."""
    try:
        return path is not None and _descriptor(Path(path)) == 1
    except OSError:
        return False


def write_stdout(data: bytes) -> None:
    """Write bytes to standard output, after the text printed before.

    Raises:
        YolactError: it cannot be written, or its reader has closed it.
    """
    if sys.stdout is None:
        raise YolactError("cannot write standard output: it is closed")
    with writing("standard output"):
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError as error:
            discard_output(sys.stdout)
            raise YolactError("standard output was closed by its reader; stopped") from error
        except OSError:
            discard_output(sys.stdout)
            raise


def discard_output(stream: TextIO) -> None:
    """Drop what a failed stream holds and gets: at exit, Python would fail again, with a traceback."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def open_stream(stream: int | Path) -> BinaryIO:
    """Open what `stream_of` returned, except standard output, for `write_all`.

    Raises:
        OSError: it cannot be opened.
        YolactError: it is a pipe that no process opens for reading within some seconds.
    """
    if isinstance(stream, int):
        return os.fdopen(os.dup(stream), "wb", buffering=0)
    deadline = time.monotonic() + READER_WAIT
    while True:
        try:
            handle = os.open(stream, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        if time.monotonic() > deadline:
            raise YolactError(f"cannot write {stream}: no process reads this pipe")
        time.sleep(0.05)
    os.set_blocking(handle, True)
    return os.fdopen(handle, "wb", buffering=0)


def write_all(file: BinaryIO, data: bytes, name: object) -> None:
    """Write all bytes to a file without a buffer; one that is not a regular file may take them in parts.

    Raises:
        OSError: it cannot be written.
        YolactError: it is a pipe whose reader has closed it.
    """
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) :]
    except BrokenPipeError as error:
        raise YolactError(f"cannot write {name}: its reader has closed it") from error


@contextlib.contextmanager
def atomic_path(path: str | Path, keep: bool = False) -> Iterator[Path]:
    """Yield a temporary path; on success put the file at `path`, see `place`.

    If the block raises, the temporary file is removed and `path` keeps its previous content. If the process
    is killed, the next one that writes to the folder removes it, or, with `keep`, nobody does.

    Raises:
        YolactError: the folder cannot be written to.
    """
    path = Path(path)
    with writing(path):
        folder = None if stream_of(path) is not None else _made_folder(path)
        with new_file(folder, path.name, keep) as temporary:
            yield temporary
            place(temporary, path)


def place(temporary: Path, path: str | Path) -> None:
    """Put a finished file at `path`: fsync and rename it, or copy it where there is a pipe or a device.

    A symbolic link stays, and the file behind it is replaced.

    Args:
        temporary: The file, in the folder of `follow_links(path)` unless `path` is a pipe or a device.
        path: The final name; `-` for standard output.

    Raises:
        OSError: it cannot be written.
        YolactError: its reader has closed it, or it is a folder.
    """
    stream = stream_of(path)
    if stream is None:
        target = follow_links(path)
        mode = target.stat().st_mode if target.exists() else 0o666 & ~_umask()
        temporary.chmod(mode & 0o777)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        return
    with temporary.open("rb") as file, contextlib.ExitStack() as stack:
        opened = None if stream == 1 else stack.enter_context(open_stream(stream))
        while block := file.read(1 << 20):
            if opened is None:
                write_stdout(block)
            else:
                write_all(opened, block, path)


def _made_folder(path: Path) -> Path:
    """The folder of the file behind `path`, created if it is missing."""
    folder = follow_links(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new temporary folder next to `path`; on success rename it to `path`, which must not exist.

    If the block raises, the temporary folder is removed. Its name begins with a dot.

    Raises:
        YolactError: the folder cannot be written to.
    """
    with writing(path):
        target = follow_links(path)
        with new_folder(_made_folder(target), target.name) as outer:
            folder = outer / target.name
            folder.mkdir()
            yield folder
            for file in folder.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as opened:
                        os.fsync(opened.fileno())
            folder.rename(target)


def write_json(
    path: str | Path, value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> None:
    """Write `value` as JSON to `path`, atomically; `default` converts what JSON does not have."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=indent, default=default)


def is_file(path: str | Path) -> bool:
    """Whether a path is a regular file; unlike `Path.is_file`, False also where that cannot be determined.

    That is for names that are too long or hold a zero byte, and in folders that may not be searched.
    """
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder, as `is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


def read_text(path: str | Path, what: str = "file", most: str = "text_bytes") -> str:
    """Read UTF-8 text from a regular file, without a byte order mark.

    Args:
        path: The file.
        what: What it is, for the error.
        most: The limit on its size, of `untrusted.LIMITS`.

    Raises:
        YolactError: as `untrusted.read_bytes`, or it is not UTF-8; names the file.
    """
    try:
        return read_bytes(path, what, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YolactError(f"{what} {path} is not UTF-8 text: {error}") from error


def read_json(path: str | Path, what: str = "file", most: str = "text_bytes") -> Any:
    """Read JSON from a file, as `read_text`; raises a YolactError also where `parse_json` does."""
    try:
        return parse_json(read_text(path, what, most))
    except ValueError as error:
        raise YolactError(f"{what} {path} is not valid JSON: {error}") from error


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    with _UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask
