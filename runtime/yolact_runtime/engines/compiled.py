"""Compiled networks in the cache folder, so that a library does not compile the same file at each start.

An entry is a file of one block of JSON and what the library wrote. It is known by all that this was computed
from: the content of the network's files, the versions of the library and of this package, this machine's CPU
and the settings. The CRC-32 of both finds damage only. Nobody else may be able to write the entry, or to
replace the network's files while they are compiled: `yolact_runtime.cache` checks that.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.cache import (
    NotTrustedError,
    cache_folder,
    check_ours,
    create_folder,
    digest,
    opened_entry,
    opened_folder,
    say_once,
)
from yolact_runtime.engines.content import content_files, content_hashes
from yolact_runtime.engines.cpu import cpu_flags, cpu_part
from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.files import new_file
from yolact_runtime.untrusted import beyond, limit, parse_json
from yolact_runtime.version import __version__

log = logging.getLogger(__name__)

FOLDER = "networks"
_SUFFIX = ".network"
# Bytes of the JSON with the blanks after it.
_HEAD = 4096
# Another one if entries get another form, or what is kept with them another meaning.
_FORMAT = 2
_NOT_READ = (NotTrustedError, YolactError, OSError, ValueError, TypeError, LookupError, MemoryError)
# Environment variables that let libraries use other instructions than the CPU's.
_INSTRUCTIONS = (
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
)


@dataclass(frozen=True)
class Entry:
    """A compiled network.

    Attributes:
        value: What was kept with it.
        data: What the library wrote, (size,) uint8.
    """

    value: Mapping[str, Any]
    data: np.ndarray


class CompiledNetwork:
    """The place of one compiled network in the cache folder.

    Args:
        path: The network's file.
        library: Name of the library, which the entry's name begins with.
        version: Of the library.
        settings: All that it compiles with, as JSON has it.
        device: What it is compiled for; None for this machine's CPU.
    """

    def __init__(
        self, path: Path, library: str, version: str, settings: Any, device: Any | None = None
    ) -> None:
        self._network, self._library = path, library
        self._rest = [_FORMAT, __version__, library, version, settings, device or _machine()]
        self._inputs: Any = None
        self._entry: Path | None = None
        if limit("cache_bytes") < _HEAD or not (device or cpu_flags()):
            return  # what is compiled for a CPU that is not known may not run on the next one
        try:
            self._inputs = self._rest, content_hashes(content_files(path))
            self._entry = cache_folder() / FOLDER / f"{library}-{digest(self._inputs)[:32]}{_SUFFIX}"
        except YolactError as error:  # opening the file reports what is wrong with it
            log.debug("%s: compiled networks are not kept: %s", path, error)

    def read(self, allocate: Callable[[int], np.ndarray] | None = None) -> Entry | None:
        """The entry; None if there is none, it is damaged, or somebody else may have written it.

        Args:
            allocate: Makes the array of so many bytes that it is read into; left out, NumPy.
        """
        if self._entry is None:
            return None
        try:
            with opened_entry(self._entry) as handle:
                entry = self._checked(handle, allocate or _empty)
                with contextlib.suppress(OSError):  # of root's entries, only root sets the time
                    os.utime(handle if os.utime in os.supports_fd else self._entry)
        except FileNotFoundError:
            return None
        except _NOT_READ as error:
            self._not_used(error)
            return None
        return entry

    def may_be_kept(self) -> bool:
        """Whether an entry as large as the network could be written now: preparing one takes time, too."""
        if self._entry is None:
            return False
        try:
            files = content_files(self._network)
            _check_files(files)
            size = sum(file.stat().st_size for file in files)
            with self._opened_folder() as folder:
                _check_space(folder, size)
                return _HEAD + size <= limit("cache_bytes") and os.access(folder, os.W_OK)
        except (NotTrustedError, YolactError, OSError) as error:
            self._not_used(error)
            return False

    def write(self, value: Mapping[str, Any], data: bytes | memoryview) -> None:
        """Keep what the library wrote; if there is too much then, remove what was not used for longest.

        Nothing is kept if the network's files have changed or others can change them, if the disk has less
        than twice the space, or if it cannot be written.

        Args:
            value: What to keep with it, as JSON has it; at most a few hundred bytes.
            data: What the library wrote.
        """
        if self._entry is None or _HEAD + len(data) > limit("cache_bytes"):
            return
        head = {"inputs": digest(self._inputs), "value": value, "bytes": len(data)}
        block = json.dumps(head | {"crc32": _checksum(head, data)}).encode().ljust(_HEAD)
        try:
            # Between its hash and its compilation, an export may have put another file there; others can put
            # the first back as well.
            files = content_files(self._network)
            _check_files(files)
            if len(block) > _HEAD or content_hashes(files, again=True) != self._inputs[1]:
                return
            with self._opened_folder() as folder:
                _check_space(folder, len(data))
                # Its name appears when it is complete. After a power failure it may not be: the CRC finds it.
                with new_file(folder, self._entry.name) as temporary:
                    with temporary.open("wb") as file:
                        file.write(block)
                        file.write(data)
                    temporary.chmod(0o600)
                    temporary.replace(self._entry)
                _remove_oldest(folder, self._entry)
        except (NotTrustedError, YolactError, OSError) as error:
            self._not_used(error)

    @contextlib.contextmanager
    def _opened_folder(self) -> Iterator[Path]:
        """The folder of the entries, created and checked."""
        assert self._entry is not None
        folder = self._entry.parent
        create_folder(folder.parent)
        with opened_folder(folder, create=True):
            yield folder

    def unusable(self, error: Exception) -> None:
        """Say that the library refuses the entry."""
        self._not_used(error)

    def _checked(self, handle: int, allocate: Callable[[int], np.ndarray]) -> Entry:
        """The entry of an open file; a ValueError if it is damaged or of other inputs."""
        size = os.fstat(handle).st_size
        if size <= _HEAD:
            raise ValueError("it is cut off")
        if size > limit("cache_bytes"):
            raise ValueError(f"it has more bytes than {beyond('cache_bytes')}")
        with os.fdopen(handle, "rb", closefd=False) as file:
            head = parse_json(file.read(_HEAD))
            if head["inputs"] != digest(self._inputs) or not isinstance(head["value"], dict):
                raise ValueError("it is that of another network")
            if head["bytes"] != size - _HEAD:
                raise ValueError("its size differs")
            data = allocate(size - _HEAD)
            read = file.readinto(data.data)
        if read != len(data) or head.pop("crc32") != _checksum(head, data.data):
            raise ValueError("its bytes differ")
        return Entry(head["value"], data)

    def _not_used(self, error: Exception) -> None:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        log.debug("%s: the compiled network is not used or not kept: %s", self._entry, reason)
        if isinstance(error, NotTrustedError):
            key = f"{FOLDER} in {os.environ.get('YOLACT_CACHE')}"
            say_once(f"a compiled network: the cache is not used: {reason}", key)


def _check_files(files: Sequence[Path]) -> None:
    """Raise an error if others can put other files in the place of a network's while it is compiled."""
    for file in files:
        try:
            check_ours(file)
        except NotTrustedError as error:  # no fault, as of shared folders, but each start takes longer
            say_once(f"{file}: its compiled network is not kept: {error}", f"files {error}", log.info)
            raise YolactError(str(error)) from error


def _empty(size: int) -> np.ndarray:
    return np.empty(size, np.uint8)


def _checksum(head: Mapping[str, Any], data: bytes | memoryview) -> int:
    """The CRC-32 of an entry: of its JSON without the CRC, and of its data."""
    return zlib.crc32(data, zlib.crc32(json.dumps(head, sort_keys=True).encode()))


def _check_space(folder: Path, size: int) -> None:
    """Raise an OSError if the disk has less than twice the space that an entry needs."""
    if shutil.disk_usage(folder).free < 2 * (_HEAD + size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _remove_oldest(folder: Path, kept: Path) -> None:
    """Remove the entries that were not used for longest until all have at most `cache_bytes`."""
    found = []
    for path in folder.glob(f"[!.]*{_SUFFIX}"):  # hidden ones are being written
        with contextlib.suppress(OSError):  # another process may have removed it
            status = path.lstat()
            found.append((path != kept, -status.st_mtime_ns, status.st_size, path))
    total = 0
    for _, _, size, path in sorted(found):
        total += size
        if total > limit("cache_bytes") and path != kept:
            with contextlib.suppress(OSError):  # as above; on Windows, it may be in use
                path.unlink()


def _machine() -> list[Any]:
    """What a network compiled for the CPU depends on."""
    system = [*os.uname()[::4]] if hasattr(os, "uname") else [os.environ.get("PROCESSOR_IDENTIFIER", "")]
    return [system, sorted(cpu_flags()), cpu_part(), {name: os.environ.get(name) for name in _INSTRUCTIONS}]
