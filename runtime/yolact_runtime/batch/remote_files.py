"""Files that are named by an address, such as s3://bucket/a.jpg: finding and reading them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import unquote

from yolact_runtime.errors import UsageError, YolactError, first_line, without_secrets
from yolact_runtime.packages import require
from yolact_runtime.untrusted import beyond, limit

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.fs import FileSystem

_READERS = 16  # files of a batch that are read at once


def is_remote(name: str) -> bool:
    """Whether a name is an address; file:// is a path."""
    return "://" in name and not name.startswith("file://")


def local_path(name: str) -> str:
    """The path that a file:// address names; any other name as it is.

    Raises:
        UsageError: the address names another host or no path.
    """
    if not name.startswith("file://"):
        return name
    host, slash, path = name.removeprefix("file://").partition("/")
    if not slash or host not in ("", "localhost"):
        raise UsageError(f"{name} names no path of this machine; write file:///PATH")
    return unquote(f"/{path}")


def filesystem_of(address: str) -> tuple[FileSystem, str]:
    """The file system of an address, and the path in it: pyarrow's if it knows the scheme, else fsspec's.

    Raises:
        YolactError: neither knows it, a package is missing, or the service cannot be reached.
    """
    require("reading addresses", "ray", "pyarrow", "fsspec")
    import fsspec.core
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        try:
            found: tuple[FileSystem, str] = FileSystem.from_uri(address)
        except ArrowInvalid:  # a scheme that it does not know
            other, path = fsspec.core.url_to_fs(address)
            return PyFileSystem(FSSpecHandler(other)), path
    except Exception as error:  # of any kind, from the libraries of the services
        raise YolactError(f"cannot open {without_secrets(address)}: {first_line(error)}") from error
    return found


class Addresses:
    """Translates between addresses and paths in their file systems, each of which is opened once."""

    def __init__(self) -> None:
        self._opened: dict[str, tuple[FileSystem, str]] = {}

    def path_of(self, address: str) -> tuple[FileSystem, str]:
        """The file system of an address, and the path in it."""
        root, key = _split(address)
        system, base = self._open(root)
        return system, f"{base}/{key}" if key else base

    def address_of(self, path: str, like: str) -> str:
        """The address of a path in the file system of the address `like`."""
        root, _ = _split(like)
        return f"{root}/{path.removeprefix(self._open(root)[1]).lstrip('/')}"

    def _open(self, root: str) -> tuple[FileSystem, str]:
        if root not in self._opened:
            system, base = filesystem_of(root)
            self._opened[root] = system, base.rstrip("/")
        return self._opened[root]


def _split(address: str) -> tuple[str, str]:
    """Scheme with bucket or host, and the rest, also after a # or a question mark, where urlsplit ends."""
    scheme, _, rest = address.partition("://")
    host, _, key = rest.partition("/")
    return f"{scheme}://{host}", key


def find_files(address: str) -> list[str]:
    """The addresses of the files that an address names: itself, those of a folder, or those of a pattern.

    Raises:
        YolactError: the service cannot be reached, or nothing is there.
    """
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSelector, FileType

    shown = without_secrets(address)
    addresses = Addresses()
    try:
        system, path = addresses.path_of(address.rstrip("/"))
        if glob.has_magic(address):
            found = ArrowFSWrapper(system).glob(path)
        elif (kind := system.get_file_info(path).type) == FileType.File:
            return [address]
        elif kind == FileType.Directory:
            found = [entry.path for entry in system.get_file_info(FileSelector(path)) if entry.is_file]
        else:
            raise YolactError(f"{shown} does not exist")
    except (OSError, ValueError) as error:
        raise YolactError(f"cannot read {shown}: {first_line(error)}") from error
    return [addresses.address_of(name, address) for name in sorted(found)]


def read_remote(address: str, addresses: Addresses) -> bytes:
    """The content of an image file.

    Raises:
        YolactError: it cannot be read, or is larger than an image may be.
    """
    shown = without_secrets(address)
    try:
        system, path = addresses.path_of(address)
        with system.open_input_stream(path) as stream:
            data: bytes = stream.read(limit("image_bytes") + 1)
    except YolactError as error:
        raise YolactError(f"cannot read image {shown}: {error}") from error
    except Exception as error:  # of any kind, from the libraries of the services
        reason = "no such file" if isinstance(error, FileNotFoundError) else first_line(error)
        raise YolactError(f"cannot read image {shown}: {reason}") from error
    if len(data) > limit("image_bytes"):
        raise YolactError(f"image {shown} has more bytes than {beyond('image_bytes')}")
    return data


def fetch(batch: pyarrow.Table) -> Iterator[pyarrow.Table]:
    """Read the files of a batch that are named by an address, several at once.

    Args:
        batch: With a column "path", of bytes.

    Yields:
        Columns "path", "bytes" (missing for paths, which the worker reads itself) and "error"; a few rows
        each, as memory holds their files.
    """
    import pyarrow as pa

    addresses = Addresses()

    def read(name: bytes) -> tuple[bytes | None, str | None]:
        address = os.fsdecode(name)
        try:
            return (read_remote(address, addresses) if is_remote(address) else None), None
        except YolactError as error:
            return None, str(error)

    names = batch.column("path").to_pylist()
    with ThreadPoolExecutor(_READERS) as pool:
        for at in range(0, len(names), _READERS):
            some = names[at : at + _READERS]
            data, errors = zip(*pool.map(read, some), strict=True)
            yield pa.table([some, list(data), list(errors)], schema=fetched_schema())


def fetched_schema() -> pyarrow.Schema:
    """The columns of images that are read before a worker has them."""
    import pyarrow as pa

    return pa.schema([("path", pa.large_binary()), ("bytes", pa.large_binary()), ("error", pa.string())])
