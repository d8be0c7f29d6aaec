"""Tables of shards, CSV and Parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

from yolact_runtime.errors import YolactError
from yolact_runtime.files import read_json
from yolact_runtime.merge.order import Record
from yolact_runtime.merge.parquet import open_parquet, read_rows
from yolact_runtime.merge.shards import ShardFile, ascents, pairs
from yolact_runtime.sinks.table import COLUMNS, INDEX, METADATA, shard_file
from yolact_runtime.sources.shard import Shard
from yolact_runtime.untrusted import beyond, check_regular, limit, open_regular, parse_json

_TYPES = {**COLUMNS, **INDEX}
_BATCH = 1024  # rows
_OPTIONAL = ("centroid_x", "centroid_y", "track")
_index = itemgetter(len(COLUMNS))

Row = tuple[Any, ...]


def open_table_shard(path: Path) -> ShardFile:
    """Look through the table of a shard.

    Raises:
        YolactError: it cannot be read, is of no shard, or damaged.
    """
    check_regular(path)
    parquet = path.suffix.lower() == ".parquet"
    rows = partial(_parquet_rows if parquet else _csv_rows, path)
    summary = _parquet_summary(path) if parquet else _csv_summary(path)
    shard = Shard.from_json(summary.get("shard")) if isinstance(summary, dict) else None
    if shard is None:
        raise YolactError(f"{path} is of no shard: it was written without --shard, or by another program")
    done, failed = summary.get("done"), summary.get("failed")
    if type(done) is not int or type(failed) is not int or min(done, failed) < 0:
        raise YolactError(f"{path} is damaged: it lacks the numbers of images that are done and failed")
    starts, _ = ascents(path, enumerate(map(_index, rows())))
    streams = [partial(_records, rows, path, shard, *ends) for ends in pairs(starts, None)]
    return ShardFile(path, shard, done + failed, list(streams), failed)


def _records(
    rows: Callable[[], Iterator[Row]], path: Path, shard: Shard, start: int, end: int | None
) -> Iterator[Record]:
    """The rows from one place to another, in lists with those of one image, without their index."""
    most = limit("candidates")
    for index, group in itertools.groupby(itertools.islice(rows(), start, end), _index):
        found = list(itertools.islice(group, most + 1))
        if not shard.has(index) or len(found) > most or [row[1] for row in found] != list(range(len(found))):
            raise YolactError(f"{path} is damaged, or was not written by yolact-infer: image {index + 1}")
        yield index, [row[:-1] for row in found]


def _check(path: Path, number: int, row: Row) -> Row:
    """A row, if its values are of the types of its columns."""
    for (column, kind), value in zip(_TYPES.items(), row, strict=True):
        if value is None and column in _OPTIONAL:
            continue
        right = type(value) is {"string": str, "int64": int, "float64": float}[kind]
        if not right or (kind == "float64" and not math.isfinite(value)):
            raise YolactError(f"{path}: row {number} has the {column} {str(value)[:40]!r}")
        if kind == "string" and len(value) > limit("name"):
            raise YolactError(f"{path}: row {number} has a {column} of {len(value)} characters")
        if kind == "int64" and not -(1 << 63) <= value < 1 << 63:
            raise YolactError(f"{path}: row {number} has the {column} {str(value)[:40]}")
    return row


def _parquet_summary(path: Path) -> Any:
    """What the table says about its shard."""
    with open_parquet(path, _TYPES) as file:
        try:
            return parse_json((file.metadata.metadata or {})[METADATA])
        except (KeyError, ValueError):
            return None


def _parquet_rows(path: Path) -> Iterator[Row]:
    with open_parquet(path, _TYPES) as file:
        for number, row in enumerate(read_rows(path, file, list(_TYPES), _BATCH), start=1):
            yield _check(path, number, tuple(row.values()))


def _csv_summary(path: Path) -> Any:
    side = shard_file(path)
    if not side.exists():
        raise YolactError(
            f"{path} is of no shard, or {side.name}, which belongs to it, is not in the same folder"
        )
    return read_json(side, "file")


def _csv_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file, with numbers where they are numbers."""
    convert = [{"string": str, "int64": int, "float64": float}[kind] for kind in _TYPES.values()]
    with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file, _reading_csv(path):
        reader = csv.reader(_lines(path, file), strict=True)
        if next(reader, None) != list(_TYPES):
            raise YolactError(f"{path} is of no shard: it does not have the columns of one")
        for number, cells in enumerate(reader, start=1):
            if len(cells) != len(convert):
                raise YolactError(f"{path}: row {number} has {len(cells)} cells, not {len(convert)}")
            optional = (name in _OPTIONAL for name in _TYPES)
            try:
                row = tuple(
                    None if not cell and may_lack else kind(cell)
                    for kind, cell, may_lack in zip(convert, cells, optional, strict=True)
                )
            except ValueError:
                raise YolactError(f"{path}: row {number} has something else than a number") from None
            yield _check(path, number, row)


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file; a long one could have more cells than memory holds."""
    most = limit("list_bytes")
    while line := file.readline(most + 1):
        if len(line) > most:
            raise YolactError(f"{path} has a line with more characters than {beyond('list_bytes')}")
        yield line


@contextlib.contextmanager
def _reading_csv(path: Path) -> Iterator[None]:
    try:
        yield
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise YolactError(f"{path} is damaged: {error}") from error
