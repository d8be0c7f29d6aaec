"""The cache folder: what takes long to compute, kept for the next run, and used only if nobody else wrote it.

Some entries are code, such as compiled kernels, and others decide what code does. A digest shows that an
entry is damaged, not who wrote it, because anybody can compute one. So entries are only read from folders and
files that belong to this user (or to root) and that nobody else may write to. On Windows, folders of a user
are private by default, and this is not checked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from yolact_runtime.errors import YolactError
from yolact_runtime.files import atomic_path
from yolact_runtime.untrusted import beyond, limit, parse_json

log = logging.getLogger(__name__)

T = TypeVar("T")

_POSIX = hasattr(os, "geteuid")
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# What there was a warning about: a folder that cannot be used is named once, not for each entry.
_given: set[str] = set()


class NotTrustedError(Exception):
    """A folder or file that somebody else may have written; says what to do."""


def cache_folder() -> Path:
    """Cache folder: `$YOLACT_CACHE`, else `yolact` in the user's cache folder.

    Raises:
        YolactError: the user has no home folder.
    """
    try:
        if chosen := os.environ.get("YOLACT_CACHE"):
            return Path(chosen).expanduser()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "yolact"
    except RuntimeError as error:
        raise YolactError("the cache folder is not known (no home folder); set YOLACT_CACHE") from error


def create_folder(path: Path) -> None:
    """Create a folder, if it is missing, that only this user may enter.

    Raises:
        OSError: it cannot be created, or something else has its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


@dataclass(frozen=True)
class Cache:
    """One kind of entries, in a folder of their own. Each is a JSON file with its digest.

    Attributes:
        name: Name of the folder.
        what: What an entry is, for messages.
        otherwise: What is done without the entry, for messages.
        warn: Takes a warning; None for the log.
    """

    name: str
    what: str
    otherwise: str
    warn: Callable[[str], None] | None = None

    def path(self, label: str, inputs: Any) -> Path:
        """The file of an entry.

        Args:
            label: What its name begins with: letters, digits, dots and dashes.
            inputs: All that the entry is computed from, as JSON has it.

        Raises:
            YolactError: there is no cache folder.
        """
        return cache_folder() / self.name / f"{label}-{digest(self.name, inputs)[:32]}.json"

    def read(self, label: str, inputs: Any, convert: Callable[[Any], T]) -> T | None:
        """An entry; None if there is none, it is damaged, or somebody else may have written it.

        All but the first is a warning.

        Args:
            label: As in `path`.
            inputs: As in `path`.
            convert: Checks the value and turns it into the result; raises a ValueError if it cannot be right.
        """
        try:
            path = self.path(label, inputs)
            return convert(_value(_read(path), self.name, inputs))
        except FileNotFoundError:
            return None
        except (NotTrustedError, YolactError, OSError) as error:
            self._not_used(label, inputs, error)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            self._say(f"{self.what}: {path} is damaged ({error}); {self.otherwise}", str(path))
        return None

    def write(self, label: str, inputs: Any, value: Any) -> None:
        """Keep an entry; a failure is a warning.

        Args:
            label: As in `path`.
            inputs: As in `path`.
            value: As JSON has it.
        """
        try:
            path = self.path(label, inputs)
            create_folder(path.parent.parent)
            with opened_folder(path.parent, create=True):
                _check_link(path)
                if path.exists() and not path.is_file():
                    raise NotTrustedError(f"{path} is not a file; delete it")
                entry = {"sha256": digest(self.name, inputs, value), "value": value}
                with atomic_path(path) as temporary:
                    temporary.write_text(json.dumps(entry), encoding="utf-8")
                path.chmod(0o600)
        except (NotTrustedError, YolactError, OSError) as error:
            self._not_used(label, inputs, error)

    def _not_used(self, label: str, inputs: Any, error: Exception) -> None:
        """Warn, once, that entries are neither read nor kept."""
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"{self.path(label, inputs)}: {error.strerror or error}"
        key = f"{self.name} in {os.environ.get('YOLACT_CACHE')}"
        self._say(f"{self.what}: the cache is not used: {reason}", key)

    def _say(self, text: str, key: str) -> None:
        """Give a warning, unless there was one about `key`."""
        say_once(text, key, self.warn)


def say_once(text: str, key: str, warn: Callable[[str], None] | None = None) -> None:
    """Give a warning, in the log by default, unless there was one about `key` in this process."""
    if key not in _given:
        _given.add(key)
        (warn or log.warning)(text)


def digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _value(data: bytes, name: str, inputs: Any) -> Any:
    """The value of an entry's content; a ValueError if it is not that of an entry for these inputs."""
    entry = parse_json(data)
    if not isinstance(entry, dict) or entry.keys() != {"sha256", "value"}:
        raise ValueError("it is not an entry")
    if entry["sha256"] != digest(name, inputs, entry["value"]):
        raise ValueError("its digest differs")
    return entry["value"]


def _read(path: Path) -> bytes:
    """The content of an entry, if nobody else can have written it."""
    with opened_entry(path) as handle, os.fdopen(handle, "rb", closefd=False) as file:
        data = file.read(limit("text_bytes") + 1)
    if len(data) > limit("text_bytes"):
        raise ValueError(f"it has more bytes than {beyond('text_bytes')}")
    return data


@contextmanager
def opened_entry(path: Path) -> Iterator[int]:
    """Open an entry for reading, if nobody else can have written it.

    Everything is checked once it is open: what its name means may change at any time.

    Raises:
        NotTrustedError: somebody else may have written it.
        OSError: it cannot be opened.
    """
    with opened_folder(path.parent) as folder:
        flags = os.O_RDONLY | _NO_LINKS | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        _check_link(path)
        name, where = (path, None) if folder is None else (path.name, folder)
        handle = os.open(name, flags, dir_fd=where)
        try:
            _check(os.fstat(handle), path, stat.S_ISREG, f"chmod 600 {shlex.quote(str(path))}")
            yield handle
        finally:
            os.close(handle)


@contextmanager
def opened_folder(path: Path, create: bool = False) -> Iterator[int | None]:
    """Open a folder in the cache folder, if both are this user's alone; None on Windows."""
    if not _POSIX:
        if create:
            create_folder(path)
        yield None
        return
    with _opened(path.parent, _FOLDER) as outer:  # which may be a link to another disk
        if create:
            create_folder(path)
        _check_link(path)
        with _opened(path, _FOLDER | _NO_LINKS, outer) as inner:
            yield inner


@contextmanager
def _opened(path: Path, flags: int, outer: int | None = None) -> Iterator[int]:
    """Open a folder, or the one of this name in the folder `outer`, and check it."""
    handle = os.open(path if outer is None else path.name, flags, dir_fd=outer)
    try:
        _check(os.fstat(handle), path, stat.S_ISDIR, f"chmod 700 {shlex.quote(str(path))}")
        yield handle
    finally:
        os.close(handle)


def check_ours(path: Path) -> None:
    """Refuse a file that somebody else may put another one in the place of, at any part of its path.

    Raises:
        NotTrustedError: it, a folder above it or a link on the way belongs to another user, or others may
            write to it; says what to do. In a folder with the sticky bit, as /tmp, others cannot replace
            what is not theirs.
        OSError: it cannot be found.
    """
    _check_parts(path.absolute(), set())


def _check_parts(path: Path, checked: set[Path]) -> None:
    """Check a path, the folders above it, and what links on the way lead to."""
    if not _POSIX or path in checked:
        return
    checked.add(path)
    if path.parent != path:
        _check_parts(path.parent, checked)
    status = path.lstat()
    elsewhere = "keep the file in a folder that only you can write to"
    if status.st_uid not in (os.geteuid(), 0):
        raise NotTrustedError(f"{path} belongs to another user (number {status.st_uid}); {elsewhere}")
    if stat.S_ISLNK(status.st_mode):
        _check_parts(path.parent / path.readlink(), checked)
        return
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & _OTHERS_WRITE and not sticky:
        mine = status.st_uid == os.geteuid()
        remedy = f"run: chmod go-w {shlex.quote(str(path))}" if mine else elsewhere
        raise NotTrustedError(f"others may write to {path}; {remedy}")


def _check_link(path: Path) -> None:
    if path.is_symlink():
        raise NotTrustedError(f"{path} is a link; delete it")


def _check(status: os.stat_result, path: Path, is_kind: Callable[[int], bool], remedy: str) -> None:
    """Refuse what is of another kind, belongs to somebody else, or can be written by others."""
    if not is_kind(status.st_mode):
        raise NotTrustedError(f"{path} is not a file; delete it")
    if not _POSIX:
        return
    own = "set YOLACT_CACHE to a folder that only you can write to"
    if status.st_uid not in (os.geteuid(), 0):
        raise NotTrustedError(f"{path} belongs to another user (number {status.st_uid}); {own}")
    if status.st_mode & _OTHERS_WRITE:
        mine = status.st_uid == os.geteuid() and not status.st_mode & stat.S_ISVTX
        raise NotTrustedError(f"others may write to {path}; {f'run: {remedy}' if mine else own}")
