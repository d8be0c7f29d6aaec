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
        limited: Whether groups of rows have a limit on all of their bytes, and not only on their numbers.

    Raises:
        YolactError: pyarrow is missing; the file cannot be read, is damaged, or has other columns, or groups
            of rows beyond the limits.
    """
    require(f"the table {path}", "table", "pyarrow")
    from pyarrow import parquet

    most = limit("row_group_bytes")
    with opened() if opened else open_regular(path) as raw:
        with _reading(path):
            meta = parquet.read_metadata(raw)
            leaves = [meta.schema.column(number) for number in range(len(meta.schema))]
            # A text of a megabyte may stand for a million rows, which are as long only once they are apart.
            texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and _is_flat(leaf)]
            how = {"metadata": meta, "read_dictionary": texts, "pre_buffer": False, "buffer_size": 1 << 16}
            file = parquet.ParquetFile(raw, **how)
            schema = file.schema_arrow
            groups = [_group_bytes(meta.row_group(number), limited) for number in range(meta.num_row_groups)]
            found = {field.name: str(plain_type(field.type)) for field in schema}
        if any(not 0 <= size <= most for size in groups):
            raise YolactError(f"{path} has a group of rows with more bytes than {beyond('row_group_bytes')}")
        if len(found) < len(schema):
            raise YolactError(f"{path} has several columns of the same name")
        found = {name: kind.replace("double", "float64") for name, kind in found.items()}
        if isinstance(columns, Mapping) and (found != dict(columns) or list(found) != list(columns)):
            raise YolactError(f"{path} is of no shard: it does not have the columns of one")
        if missing := [name for name in columns if name not in found]:
            raise YolactError(f"{path} has no column {missing[0]!r}")
        yield file


def _group_bytes(group: Any, limited: bool) -> int:
    """The bytes of a group of rows: as they are stored, or of its numbers in memory if that is more."""
    columns = [group.column(number) for number in range(group.num_columns)]
    numbers = sum(8 * column.num_values for column in columns if column.physical_type != "BYTE_ARRAY")
    return max(group.total_byte_size if limited else 0, numbers)


def _is_flat(leaf: Any) -> bool:
    """Whether a column has no parts; pyarrow opens no others as dictionaries, and ends at 2 GB."""
    return "." not in leaf.path and leaf.max_repetition_level == 0


def plain_type(kind: Any) -> Any:
    """The type of what a column has, which `open_parquet` opens as a dictionary if these are texts."""
    import pyarrow

    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


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
        YolactError: it is damaged, or a row is longer than a line of JSON may be.
    """
    for rows in read_batches(path, file, batch_size=batch, columns=columns):
        for values in plain_columns(path, rows):
            for row in zip(*values.values(), strict=True):
                yield dict(zip(values, row, strict=True))


def plain_columns(
    path: str | Path, rows: pyarrow.RecordBatch, most: str = "text_bytes"
) -> Iterator[dict[str, list[Any]]]:
    """The columns of a batch as lists, in parts that memory holds.

    Args:
        path: What the file is called.
        rows: Of `read_batches`.
        most: The limit in `LIMITS` on the bytes of a row.

    Raises:
        YolactError: it is damaged, or a row has more bytes.
    """
    with _reading(path):
        size = sum(map(_bytes_apart, rows.columns))
    if size <= limit(most):
        with _reading(path):
            values = rows.to_pydict()
        yield values
    elif rows.num_rows > 1:
        half = rows.num_rows // 2
        yield from plain_columns(path, rows.slice(0, half), most)
        yield from plain_columns(path, rows.slice(half), most)
    else:
        raise YolactError(f"{path} has a row with more bytes than {beyond(most)}")


def _bytes_apart(array: Any) -> int:
    """The bytes of the values of an array, each text counted as often as it is there."""
    from pyarrow import compute, types

    kind = array.type
    if types.is_dictionary(kind):
        lengths = compute.binary_length(array.dictionary).take(array.indices)
        return int(compute.sum(lengths).as_py() or 0) + 4 * len(array)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        return _bytes_apart(array.flatten()) + 4 * len(array)
    if types.is_struct(kind):
        return sum(map(_bytes_apart, array.flatten()))
    return int(array.nbytes)


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn the errors of pyarrow into one line; they are of many kinds."""
    try:
        yield
    except (YolactError, MemoryError):
        raise
    except Exception as error:
        raise YolactError(f"{path} is damaged, or not Parquet: {first_line(error)}") from error
