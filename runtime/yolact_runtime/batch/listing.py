"""What a run on a cluster reads: paths and addresses of images, and Parquet files with images in them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_runtime.batch.remote_files import fetched_schema, filesystem_of, find_files, is_remote, local_path
from yolact_runtime.errors import UsageError, YolactError, first_line, without_secrets
from yolact_runtime.files import STDOUT
from yolact_runtime.merge.parquet import open_parquet, plain_columns, plain_type, read_batches
from yolact_runtime.sources.camera import is_camera
from yolact_runtime.sources.folders import IMAGES, VIDEOS, images_in, is_pattern, match, suffix_of
from yolact_runtime.sources.images import expand
from yolact_runtime.sources.listing import ListSource
from yolact_runtime.untrusted import beyond, limit

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

_PARQUET = ".parquet"
_NAME = "S16"  # of a digest


@dataclass
class Listing:
    """What the sources name.

    Attributes:
        paths: A chunked array of names as bytes, each once, in their order; a file name may be no text.
        groups: (file, row group) of Parquet files with a column "bytes", each once.
        rows: Of all groups.
        doubled: How many paths were named before.
    """

    paths: pyarrow.ChunkedArray
    groups: list[tuple[str, int]] = field(default_factory=list)
    rows: int = 0
    doubled: int = 0


def list_sources(names: Sequence[str], null: bool = False, stream: Any = None) -> Listing:
    """Find what the sources name.

    Args:
        names: Images, folders, patterns, Parquet files and folders of them, all as paths or addresses, and
            `-` for a list on standard input.
        null: Paths on standard input end in NUL.
        stream: Read instead of standard input.

    Raises:
        UsageError: a name of nothing, of a video or of a camera.
        YolactError: a folder, address or Parquet file cannot be read.
    """
    import pyarrow as pa

    chunks: list[pyarrow.Array] = []
    groups: dict[tuple[str, int], int] = {}
    for name in names:
        if name == STDOUT:
            lines = ListSource(stream or sys.stdin.buffer, null)
            chunks.append(_names(frame.name for frame in lines))
            continue
        files = _files_of(local_path(name))
        tables = [file for file in files if suffix_of(file) == _PARQUET]
        if not tables:
            chunks.append(_names(files))
        for file in tables:
            _add_table(file, chunks, groups)
    named = pa.chunked_array(chunks, pa.large_binary())
    once = named.unique()
    return Listing(pa.chunked_array([once]), list(groups), sum(groups.values()), len(named) - len(once))


def _names(names: Iterable[str]) -> pyarrow.Array:
    """Names as Arrow has them: paths from the root, because workers have other current folders."""
    import pyarrow as pa

    return pa.array((os.fsencode(_from_root(name)) for name in names), pa.large_binary())


def _from_root(name: str) -> str:
    return name if is_remote(name) else os.path.abspath(local_path(name))  # noqa: PTH100 - of text


def _files_of(name: str) -> list[str]:
    """The images or the Parquet files that one source names.

    Raises:
        UsageError: it names none, or a video or camera.
        YolactError: it cannot be read.
    """
    if is_remote(name):
        return _chosen(name, find_files(name))
    if suffix_of(name) in VIDEOS or (is_camera(name) and not os.path.lexists(name)):
        raise UsageError(f"--ray reads images, and {without_secrets(name)} is a video or camera")
    if os.path.isdir(name):  # noqa: PTH112 - raises no error
        with os.scandir(name) as entries:
            files = sorted(entry.path for entry in entries if not entry.name.startswith(("_", ".")))
        return _tables(name, files) or expand(name)
    return _chosen(name, match(name)) if is_pattern(name) else expand(name)


def _chosen(source: str, files: list[str]) -> list[str]:
    """Of several files the Parquet files, else the images; a single one as it is."""
    if files == [source]:
        return files
    return _tables(source, files) or images_in(without_secrets(source), files)


def _tables(source: str, files: list[str]) -> list[str]:
    """The Parquet files among the files of a folder or pattern.

    Raises:
        UsageError: there are images besides them.
    """
    tables = [file for file in files if suffix_of(file) == _PARQUET]
    if tables and any(suffix_of(file) in IMAGES for file in files):
        shown = without_secrets(source)
        folder = shown.rstrip("/") if "*" not in shown else shown.rpartition("/")[0] or "."
        raise UsageError(f"{shown} has images and Parquet files; name {folder}/*.png or {folder}/*.parquet")
    return tables


def _add_table(file: str, chunks: list[pyarrow.Array], groups: dict[tuple[str, int], int]) -> None:
    """Add what a Parquet file names: row groups and their numbers of rows if these are images, else paths."""
    import pyarrow as pa

    with _open(file) as parquet:
        names = parquet.schema_arrow.names
        if "bytes" in names:
            check_type(parquet, file, "bytes", pa.types.is_binary, pa.types.is_large_binary)
            for number in range(parquet.num_row_groups):
                groups[_from_root(file), number] = parquet.metadata.row_group(number).num_rows
            return
        if "path" not in names:
            raise YolactError(f"{without_secrets(file)} has no column path or bytes; it has {names[:20]}")
        check_type(parquet, file, "path", pa.types.is_string, pa.types.is_large_string)
        before = 0
        for batch in read_batches(without_secrets(file), parquet, columns=["path"]):
            for values in plain_columns(without_secrets(file), batch):
                found = values["path"]
                if lost := next((row for row, name in enumerate(found, before + 1) if not name), None):
                    raise YolactError(f"{without_secrets(file)}: row {lost} has no path")
                _check_lengths(file, found, before)
                before += len(found)
                chunks.append(_names(found))


def _check_lengths(file: str, paths: Sequence[str | None], before: int) -> None:
    """Raise a YolactError for a path that is too long: a file may have each of its texts a million times."""
    most = limit("name")
    if long := next((row for row, path in enumerate(paths, before + 1) if path and len(path) > most), None):
        raise YolactError(
            f"{without_secrets(file)}: row {long} has a path of more characters than {beyond('name')}"
        )


def check_type(parquet: Any, file: str, column: str, *allowed: Callable[[Any], bool]) -> None:
    """Raise a YolactError for a column of another type."""
    kind = plain_type(parquet.schema_arrow.field(column).type)
    if not any(is_kind(kind) for is_kind in allowed):
        wanted = "bytes" if column == "bytes" else "text"
        raise YolactError(f"{without_secrets(file)}: column {column} is {kind}; it must be {wanted}")


def _open(file: str, limited: bool = True) -> contextlib.AbstractContextManager[ParquetFile]:
    """Open a Parquet file by path or address, as `open_parquet` does."""

    def opened() -> Any:
        system, path = filesystem_of(file)
        try:
            return system.open_input_file(path)
        except (OSError, ValueError) as error:
            raise YolactError(f"cannot read {without_secrets(file)}: {first_line(error)}") from error

    if is_remote(file):
        return open_parquet(without_secrets(file), (), opened, limited)
    return open_parquet(file, limited=limited)


def read_groups(batch: pyarrow.Table, done: np.ndarray) -> Iterator[pyarrow.Table]:
    """The rows of row groups, without those whose digest is in `done`.

    Args:
        batch: Columns "file" and "group".
        done: As by `digests`, sorted.

    Yields:
        Columns as `fetch` gives them. A row without a path is named by the SHA-256 of its bytes; one without
        bytes has an error, and by itself is named by its place.
    """
    import pyarrow as pa

    schema = fetched_schema()

    for work in batch.to_pylist():
        place, before = f"{work['file']}: row group {work['group']}", 0
        with _open(work["file"], limited=False) as parquet:  # which the process that listed it has checked
            columns = [name for name in ("path", "bytes") if name in parquet.schema_arrow.names]
            how = {"row_groups": [work["group"]], "columns": columns, "batch_size": 32}
            shown = without_secrets(work["file"])
            batches = read_batches(shown, parquet, **how)
            parts = (part for rows in batches for part in plain_columns(shown, rows, "image_bytes"))
            for values in parts:
                content = values["bytes"]
                paths = values.get("path", [None] * len(content))
                _check_lengths(work["file"], paths, before)
                places = [f"{place}, row {before + row}" for row in range(1, len(content) + 1)]
                before += len(content)
                names = [_name(*row) for row in zip(paths, content, places, strict=True)]
                errors = [
                    f"{name}: row has no bytes" if data is None else None
                    for name, data in zip(names, content, strict=True)
                ]
                table = pa.table([[name.encode() for name in names], content, errors], schema=schema)
                yield table.filter(pa.array(~are_done(names, done)))


def _name(path: Any, content: bytes | None, place: str) -> str:
    if path is not None:
        return str(path)
    return place if content is None else f"sha256:{hashlib.sha256(content).hexdigest()}"


def digests(names: Iterable[str | bytes]) -> np.ndarray:
    """16 bytes for each name as it is in the output, as an array of `S16`: a million names take 16 MB."""
    texts = (os.fsdecode(name).encode("utf-8", "backslashreplace") for name in names)
    found = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in texts)
    return np.frombuffer(found, _NAME)


def are_done(names: Iterable[str | bytes], done: np.ndarray) -> np.ndarray:
    """Which names are among those of the sorted `digests` `done`, as an array of bool."""
    wanted = digests(names)
    if not len(done):
        return np.zeros(len(wanted), bool)
    at = np.searchsorted(done, wanted)
    return done[np.minimum(at, len(done) - 1)] == wanted
