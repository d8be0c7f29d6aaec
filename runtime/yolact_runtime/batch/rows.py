"""The row of an image: its instances as plain values, and as Arrow's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_runtime.packages import require
from yolact_runtime.results import Result

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]

COLUMNS = (
    "path", "height", "width", "boxes", "scores", "mask_scores", "category_ids", "rles", "area", "error",
)  # fmt: skip
# The type of each value of an instance.
_NUMBERS = {"scores": np.float32, "mask_scores": np.float32, "category_ids": np.int64, "area": np.int64}


def row_of(path: str | None, result: Result) -> Row:
    """The row of an image with n instances.

    Returns:
        {"path", "height" and "width" in pixels, "boxes" (n, 4) float32 x1 y1 x2 y2 in pixels, "scores" and
        "mask_scores" (n,) float32, "category_ids" (n,) int64, "rles": n of {"size": [height, width],
        "counts": str}, "area" (n,) int64 pixels of the masks, "error": None}.
    """
    return {
        "path": path,
        "height": result.height,
        "width": result.width,
        "boxes": result.boxes_float,
        "scores": result.scores,
        "mask_scores": result.mask_scores,
        "category_ids": result.category_ids,
        "rles": result.rles,
        "area": result.areas,
        "error": None,
    }


def failed_row(path: str | None, error: str) -> Row:
    """The row of an image that failed: no size, no instances, and why in "error"."""
    nothing = {name: np.zeros(0, dtype) for name, dtype in _NUMBERS.items()}
    row = dict.fromkeys(COLUMNS) | {"path": path, "boxes": np.zeros((0, 4), np.float32), "rles": []}
    return row | nothing | {"error": error}


def arrow_schema() -> pyarrow.Schema:
    """The columns of rows in Arrow and Parquet.

    Raises:
        YolactError: pyarrow is not installed.
    """
    require("Arrow batches", "table", "pyarrow")
    import pyarrow as pa

    numbers, ids = pa.list_(pa.float32()), pa.list_(pa.int64())
    rle = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    types = {
        "path": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "boxes": pa.list_(numbers),
        "scores": numbers,
        "mask_scores": numbers,
        "category_ids": ids,
        "rles": pa.list_(rle),
        "area": ids,
        "error": pa.string(),
    }
    return pa.schema([(name, types[name]) for name in COLUMNS])


def to_arrow(rows: Sequence[Row]) -> pyarrow.Table:
    """Rows as an Arrow table with the columns of `arrow_schema`.

    Bytes of a file name that are no text become escapes such as `\\udcff`.
    """
    schema = arrow_schema()
    import pyarrow as pa

    return pa.Table.from_arrays(arrow_arrays(rows, schema), schema=schema)


def arrow_arrays(rows: Sequence[Row], schema: pyarrow.Schema) -> list[pyarrow.Array]:
    """The columns of `to_arrow`, put together without a Python object for each number."""
    import pyarrow as pa

    def lists(name: str, values: Any) -> pyarrow.Array:
        return pa.ListArray.from_arrays(ends, values, type=schema.field(name).type)

    rles = [rle for row in rows for rle in row["rles"]]
    ends = pa.array(np.cumsum([0, *(len(row["scores"]) for row in rows)]), pa.int32())
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in ("height", "width")}
    for name in ("path", "error"):
        columns[name] = [None if row[name] is None else arrow_text(row[name]) for row in rows]
    arrays = {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
    for name, dtype in _NUMBERS.items():
        values = [np.zeros(0, dtype), *(np.asarray(row[name], dtype) for row in rows)]
        arrays[name] = lists(name, pa.array(np.concatenate(values)))
    boxes = [np.asarray(row["boxes"], np.float32).reshape(-1) for row in rows]
    corners = pa.array(np.concatenate([np.zeros(0, np.float32), *boxes]))
    arrays["boxes"] = lists("boxes", _equal_lists(corners, 4))
    sizes = np.array([rle["size"] for rle in rles], np.int32).reshape(-1)
    kind = schema.field("rles").type.value_type
    counts = pa.array([rle["counts"] for rle in rles], pa.string())
    pairs = [_equal_lists(pa.array(sizes), 2), counts]
    arrays["rles"] = lists("rles", pa.StructArray.from_arrays(pairs, fields=list(kind)))
    return [arrays[name] for name in COLUMNS]


def _equal_lists(values: pyarrow.Array, length: int) -> pyarrow.Array:
    """An Arrow array of lists of one length."""
    import pyarrow as pa

    ends = pa.array(np.arange(0, len(values) + 1, length), pa.int32())
    return pa.ListArray.from_arrays(ends, values)


def arrow_text(text: str) -> str:
    """Text that Arrow can hold: halves of characters, which stand for bytes of a file name, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def to_columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows as one array of objects for each column."""
    columns = {}
    for name in COLUMNS:
        columns[name] = np.empty(len(rows), object)
        for index, row in enumerate(rows):  # NumPy would take arrays of one shape apart
            columns[name][index] = row[name]
    return columns


def rows_of(batch: Any) -> list[Mapping[str, Any]]:
    """The rows of an Arrow table, of columns by name or of a pandas data frame, as dicts of plain values."""
    rows: list[Mapping[str, Any]]
    if hasattr(batch, "to_pylist"):
        rows = batch.to_pylist()
    elif hasattr(batch, "iloc"):
        rows = batch.to_dict("records")
    elif isinstance(batch, Mapping):
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    else:
        rows = list(batch)
    return rows
