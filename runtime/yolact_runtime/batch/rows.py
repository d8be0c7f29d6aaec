"""The row of an image: its instances as plain values, and as Arrow's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_runtime.packages import require
from yolact_runtime.results import Result

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]

CATEGORIES = "yolact.categories"  # key of the metadata of a Parquet part: a list of "id" and "name"
RECORD = "_yolact.json"  # of a run on a cluster, next to its parts; readers of Parquet skip names with _

COLUMNS = (
    "path", "height", "width", "boxes", "scores", "mask_scores", "category_ids", "rles", "area", "error",
)  # fmt: skip


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
    return {
        "path": path,
        "height": None,
        "width": None,
        "boxes": np.zeros((0, 4), np.float32),
        "scores": np.zeros(0, np.float32),
        "mask_scores": np.zeros(0, np.float32),
        "category_ids": np.zeros(0, np.int64),
        "rles": [],
        "area": np.zeros(0, np.int64),
        "error": error,
    }


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

    return pa.Table.from_pylist(plain_rows(rows), schema=schema)


def plain_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows of lists, numbers and text that Arrow can hold."""
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        # Halves of characters stand for bytes of a file name that are no text.
        return value.encode("utf-8", "backslashreplace").decode()
    return value.tolist() if isinstance(value, np.ndarray) else value


def to_columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows as one array of objects for each column."""
    columns = {}
    for name in COLUMNS:
        columns[name] = np.empty(len(rows), object)
        for index, row in enumerate(rows):  # NumPy would take arrays of one shape apart
            columns[name][index] = row[name]
    return columns
