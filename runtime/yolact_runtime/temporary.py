"""Temporary files and folders next to outputs, locks against a second run, and what killed runs left of both.

The name of a temporary file says which host it is from and when that was started, and its writer holds a lock
on it, which ends with the process. So a run can remove, from each folder that it writes to, what a killed run
left there, and nothing else: the name has this form, it is from this host or this start of the machine, and
nobody holds the lock.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from yolact_runtime.errors import YolactError

log = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"\..*\.yolact-([0-9a-f]{8})-([0-9a-f]{8})-\w{8}(\..*)?", re.DOTALL)
_LOCK = re.compile(r"\.yolact-lock-[0-9a-f]{16}")
# Bytes of a name that its temporary name repeats, and of a suffix: some file systems allow 143 in all.
_STEM, _SUFFIX = 40, 20
_UNKNOWN = "0" * 8
_WINDOWS = sys.platform == "win32"
_OPEN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

# Folders that this process has swept, by device and inode.
_swept: set[tuple[int, int]] = set()
# The lock files that this process holds, and how they are released.
_held: set[Path] = set()
_claims: contextlib.ExitStack | None = None


class InUseError(YolactError):
    """An output is locked by another run."""


def try_lock(handle: int) -> bool | None:
    """Lock an open file or folder until it is closed, also by the end of the process.

    Returns:
        Whether it is locked now; False if another one has the lock; None if the file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            # Beyond the end of the file: on Windows a locked range cannot be read.
            os.lseek(handle, 1 << 40, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def new_file(folder: Path | None, name: str, keep: bool = False) -> Iterator[Path]:
    """Yield a locked temporary file for an output; it is removed at the end if it is still there.

    Args:
        folder: The output's folder; None for the folder of temporary files.
        name: The output's name, whose suffix the temporary file gets, too.
        keep: Whether it stays if the run is killed, for the user to look at.
    """
    suffix = Path(name).suffix
    suffix = suffix if len(os.fsencode(suffix)) < _SUFFIX else ""
    if folder is not None:
        sweep(folder)
    while True:
        prefix = _prefix(Path(name).stem, keep)
        handle, path = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=suffix)
        if _WINDOWS:  # which renames no open file
            os.close(handle)
            break
        try_lock(handle)
        if _is_at(handle, path):
            break
        os.close(handle)
    try:
        yield Path(path)
    finally:
        Path(path).unlink(missing_ok=True)
        if not _WINDOWS:
            os.close(handle)


@contextlib.contextmanager
def new_folder(folder: Path, name: str) -> Iterator[Path]:
    """Yield a locked temporary folder for an output `name` in `folder`; it is removed at the end."""
    sweep(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_prefix(name)) as path:
        handle = None if _WINDOWS else os.open(path, os.O_RDONLY)
        try:
            if handle is not None:
                try_lock(handle)
            yield Path(path)
        finally:
            if handle is not None:
                os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what killed runs left in a folder, once per process and folder."""
    if _WINDOWS:  # where temporary files have no lock
        return
    with contextlib.suppress(OSError):
        info = folder.stat()
        if (info.st_dev, info.st_ino) in _swept:
            return
        _swept.add((info.st_dev, info.st_ino))
        with os.scandir(folder) as entries:
            left = [Path(entry.path) for entry in entries if _is_ours(entry.name)]
        for path in left:
            with contextlib.suppress(OSError):
                _remove_if_dead(path)


@contextlib.contextmanager
def claiming() -> Iterator[None]:
    """Release at the end what `claim` locked within the block."""
    global _claims
    before = _claims
    with contextlib.ExitStack() as stack:
        _claims = stack
        try:
            yield
        finally:
            _claims = before


def claim(path: Path, folder: bool = False) -> None:
    """Lock an output against other runs, until the end of `claiming`; outside such a block, do nothing.

    A hidden lock file does it, next to a file or in a folder, which is created if it is missing. If that is
    not possible, or on a file system without locks, nothing is locked.

    Args:
        path: A file, or a folder for files whose names are not known yet.
        folder: Whether it is a folder.

    Raises:
        InUseError: another run has it.
    """
    place = Path(os.path.realpath(path if folder else path.parent))
    name = "" if folder else path.name
    lock = place / f".yolact-lock-{_digest(os.fsencode(name), 16)}"
    if _claims is None or lock in _held:
        return
    for missing in reversed([one for one in (place, *place.parents) if not os.path.lexists(one)]):
        with contextlib.suppress(OSError):
            missing.mkdir()
            _claims.callback(_remove_if_empty, missing)
    sweep(place)
    try:
        handle = _acquire(lock)
    except BlockingIOError:
        kind = "folder" if folder else "file"
        raise InUseError(f"another run writes to {path}; wait for it, or name another {kind}") from None
    if handle is not None:
        _held.add(lock)
        _claims.callback(_release, lock, handle)


def _acquire(path: Path) -> int | None:
    """Create and lock a lock file; None if that is not possible, a BlockingIOError if another has it."""
    for _ in range(5):
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | _OPEN, 0o666)
        except OSError:
            return None
        info, locked = os.fstat(handle), try_lock(handle)
        lock = stat.S_ISREG(info.st_mode) and not info.st_size
        if lock and locked and _is_at(handle, path):
            return handle
        os.close(handle)
        if not lock:  # of somebody who has taken the name
            return None
        if locked is None:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        time.sleep(0.01)  # at first it may be one that is being swept
    raise BlockingIOError


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _release(path: Path, handle: int) -> None:
    """Remove a lock file, while it is locked, and unlock it."""
    _held.discard(path)
    if _WINDOWS:  # which removes no open file
        os.close(handle)
    with contextlib.suppress(OSError):
        path.unlink()
    if not _WINDOWS:
        os.close(handle)


def _is_at(handle: int, path: str | Path) -> bool:
    """Whether an open file is still at its path, or a sweep of another process has removed it."""
    try:
        return os.path.samestat(os.fstat(handle), Path(path).lstat())
    except FileNotFoundError:
        return False


def _remove_if_dead(path: Path) -> None:
    """Remove a file or folder whose name is ours if nobody holds its lock; links are left alone."""
    info = path.lstat()
    folder, lock = stat.S_ISDIR(info.st_mode), _LOCK.fullmatch(path.name) is not None
    if info.st_uid != os.geteuid() or not (stat.S_ISREG(info.st_mode) or (folder and not lock)):
        return
    handle = os.open(path, (os.O_RDONLY if folder else os.O_RDWR) | _OPEN)
    try:
        # A handle of the same file, which nobody else has locked: its writer has ended.
        if not os.path.samestat(info, os.fstat(handle)) or try_lock(handle) is not True:
            return
        if folder:
            import shutil

            shutil.rmtree(path, ignore_errors=True)
        elif not (lock and info.st_size):
            path.unlink()
        log.debug("removed %s, which a killed run left", path)
    finally:
        os.close(handle)


def _is_ours(name: str) -> bool:
    """Whether a name is that of a lock file, or of a temporary file of this host or start of the machine."""
    if _LOCK.fullmatch(name):
        return True
    match = _TEMPORARY.fullmatch(name)
    host, start = _origin()
    return match is not None and (match[1] == host or match[2] == start != _UNKNOWN)


def _prefix(stem: str, keep: bool = False) -> str:
    """How the temporary name of an output begins: with the output's name, cut between characters."""
    cut = os.fsencode(stem)[:_STEM].decode(errors="ignore")
    return f".{cut}." if keep else f".{cut}.yolact-{'-'.join(_origin())}-"


@functools.cache
def _origin() -> tuple[str, str]:
    """The host, and the start of its kernel, which containers on it share; eight hexadecimal digits each."""
    host = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    start = _UNKNOWN
    with contextlib.suppress(OSError):
        start = _digest(Path("/proc/sys/kernel/random/boot_id").read_bytes(), 8)
    return _digest(host.encode(), 8), start


def _digest(data: bytes, digits: int) -> str:
    return hashlib.sha256(data).hexdigest()[:digits]
