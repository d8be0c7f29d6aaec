"""The forms of a batch: rows, columns, Arrow tables, pandas data frames. Imports neither Arrow nor pandas.

What is wrong with one value is an error of its row, found when its image is read. What is wrong with the
columns of a batch is raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from yolact_runtime.batch.rows import COLUMNS, Row, arrow_schema, plain_rows, to_columns
from yolact_runtime.errors import UsageError, YolactError

# Where an image comes from.
SOURCES = ("path", "bytes", "image")
# Those, and why an image could not be had.
_INPUTS = (*SOURCES, "error")


def check_kept(keep: Iterable[str]) -> tuple[str, ...]:
    """The names of the columns to keep.

    Raises:
        UsageError: one is no name, or that of a column of the output.
    """
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    for name in names:
        if not isinstance(name, str) or name in COLUMNS:
            taken = ", ".join(COLUMNS)
            raise UsageError(f"keep: {name!r} must be a column of the input other than {taken}")
    return names


def inputs_of(batch: Any, keep: Sequence[str] = ()) -> list[Mapping[str, Any]]:
    """What names the image of each row: "path", "bytes" and "image", as far as they are there.

    Values of Arrow stay scalars, so that the bytes of images are copied when they are decoded.

    Raises:
        YolactError: the batch is none, has none of these columns or not those to keep, or its columns have
            different lengths.
    """
    if _is_arrow(batch) or _is_frame(batch) or isinstance(batch, Mapping):
        names = batch.schema.names if _is_arrow(batch) else list(batch)
        _check_columns([str(name) for name in names], keep)
        return _rows(batch, [name for name in _INPUTS if name in names])
    if isinstance(batch, str | bytes) or not isinstance(batch, Iterable):
        raise YolactError(f"a batch is a {type(batch).__name__}; {_ALLOWED}")
    rows = list(batch)
    for row in rows:
        if not isinstance(row, Mapping):
            raise YolactError(f"a row is a {type(row).__name__}; {_ALLOWED}")
    return rows


_ALLOWED = "give a list of dicts, a dict of arrays, an Arrow table or a pandas data frame"


def _check_columns(names: Sequence[str], keep: Sequence[str]) -> None:
    """Raise a YolactError if the columns have no image, or not those to keep; without any there is no row."""
    found = f"the batch has the columns {', '.join(names)}"
    if names and not set(SOURCES) & set(names):
        raise YolactError(f'{found}; one of "path", "bytes" and "image" is needed')
    if names and (lost := [name for name in keep if name not in names]):
        raise YolactError(f"{found}, and not {', '.join(lost)}, which keep names")


def _rows(batch: Any, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The rows of columns by name."""
    columns = [_values(name, batch[name]) for name in names]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in zip(names, columns, strict=True))
        raise YolactError(f"the columns of the batch have different lengths: {lengths}")
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(name: str, column: Any) -> list[Any]:
    """The values of a column."""
    if isinstance(column, str | bytes) or not hasattr(column, "__iter__"):
        raise YolactError(f"column {name} is a {type(column).__name__}; an array or a list is needed")
    if name == "path" and hasattr(column, "to_pylist"):
        try:
            return list(column.to_pylist())
        except UnicodeDecodeError:  # names that are no text
            return list(column.cast("binary").to_pylist())
    if isinstance(column, np.ndarray) and column.dtype.kind == "S" and name == "bytes":
        # NumPy drops zeros at the end of each value, with which an image may end.
        raw = np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1)
        return list(raw)
    return list(column)


def answer(batch: Any, inputs: Sequence[Mapping[str, Any]], rows: list[Row], keep: Sequence[str]) -> Any:
    """Rows in the form of their batch, with the columns to keep."""
    if _is_arrow(batch):
        schema = arrow_schema()
        arrays = type(batch).from_pylist(plain_rows(rows), schema=schema).columns
        for name in keep if len(batch.schema.names) else ():
            arrays.append(batch[name])
            schema = schema.append(batch.schema.field(name))
        return type(batch).from_arrays(arrays, schema=schema)
    if _is_frame(batch):
        columns: dict[str, Any] = to_columns(rows)
        # Arrays of one dimension only: what Arrow, and so Spark, makes of a data frame.
        columns["boxes"] = [list(row["boxes"]) for row in rows]
        frame = type(batch)(columns, index=batch.index).astype({"height": "Int32", "width": "Int32"})
        return frame.assign(**{name: batch[name] for name in keep})
    if isinstance(batch, Mapping):
        return to_columns(rows) | {name: batch[name] for name in keep if name in batch}
    pairs = zip(inputs, rows, strict=True)
    return [row | {name: given.get(name) for name in keep} for given, row in pairs] if keep else rows


def _is_arrow(batch: Any) -> bool:
    """Whether it is a table or record batch of Arrow."""
    return hasattr(batch, "to_pylist") and hasattr(batch, "schema")


def _is_frame(batch: Any) -> bool:
    """Whether it is a data frame of pandas."""
    return hasattr(batch, "iloc") and hasattr(batch, "columns")
