"""Reading Parquet files of others: their columns are checked first, and no error of pyarrow's gets out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.packages import require
from yolact_runtime.untrusted import beyond, limit, open_regular

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile


@contextlib.contextmanager
def open_parquet(
    path: str | Path,
    columns: Mapping[str, str] | Iterable[str] = (),
    opened: Callable[[], Any] | None = None,
    limited: bool = True,
) -> Iterator[ParquetFile]:
    """Open a Parquet file that has some columns.

    Args:
        path: The file, or what it is called.
        columns: Their names; with their types, these are all columns, in this order.
        opened: Opens it, if it is not at `path`.
        limited: Whether groups of rows have a limit.

    Raises:
        YolactError: pyarrow is missing; the file cannot be read, is damaged, or has other columns, or groups
            of rows beyond the limits.
    """
    require(f"the table {path}", "table", "pyarrow")
    from pyarrow import parquet

    most = limit("row_group_bytes")
    with opened() if opened else open_regular(path) as raw:
        with _reading(path):
            file = parquet.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 16)
            meta, schema = file.metadata, file.schema_arrow
            groups = [meta.row_group(number).total_byte_size for number in range(meta.num_row_groups)]
        if limited and any(not 0 <= size <= most for size in groups):
            raise YolactError(f"{path} has a group of rows with more bytes than {beyond('row_group_bytes')}")
        found = {field.name: str(field.type).replace("double", "float64") for field in schema}
        if isinstance(columns, Mapping) and (found != dict(columns) or list(found) != list(columns)):
            raise YolactError(f"{path} is of no shard: it does not have the columns of one")
        if missing := [name for name in columns if name not in found]:
            raise YolactError(f"{path} has no column {missing[0]!r}")
        yield file


def read_batches(path: str | Path, file: ParquetFile, **how: Any) -> Iterator[pyarrow.RecordBatch]:
    """Batches of the rows of an open file; `how` are arguments of its `iter_batches`.

    Raises:
        YolactError: it is damaged.
    """
    with _reading(path):
        batches = file.iter_batches(**how, use_threads=False)
    while True:
        with _reading(path):
            rows = next(batches, None)
        if rows is None:
            return
        yield rows


def read_rows(path: Path, file: ParquetFile, columns: Sequence[str], batch: int) -> Iterator[dict[str, Any]]:
    """Some columns of the rows of an open file, `batch` of them in memory.

    Raises:
        YolactError: it is damaged.
    """
    for rows in read_batches(path, file, batch_size=batch, columns=columns):
        with _reading(path):
            values = rows.to_pylist()
        yield from values


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn the errors of pyarrow into one line; they are of many kinds."""
    try:
        yield
    except (YolactError, MemoryError):
        raise
    except Exception as error:
        raise YolactError(f"{path} is damaged, or not Parquet: {first_line(error)}") from error
