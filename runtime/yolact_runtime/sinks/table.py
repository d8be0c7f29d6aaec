"""Tables of all instances: CSV and Parquet."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import atomic_path, write_json, writing
from yolact_runtime.frames import Frame, ResumableSink
from yolact_runtime.packages import require
from yolact_runtime.results import Result
from yolact_runtime.sinks.growing import GrowingFile
from yolact_runtime.sinks.jsonl import rounded_centroids
from yolact_runtime.sources.shard import Shard

log = logging.getLogger(__name__)

# Columns and their types in Parquet.
COLUMNS = {
    "image": "string",
    "row": "int64",
    "class": "string",
    "category_id": "int64",
    "score": "float64",
    "x1": "float64",
    "y1": "float64",
    "x2": "float64",
    "y2": "float64",
    "area": "int64",
    "centroid_x": "float64",
    "centroid_y": "float64",
    "track": "int64",
}
INDEX = {"index": "int64"}  # one more column in tables of shards: the image's position in the whole list
METADATA = b"yolact.shard"  # Parquet's key of what a table says about its shard
SUFFIXES = (".csv", ".parquet")
ROW_GROUP = 16_384  # rows of Parquet in memory at a time
# What spreadsheets take for the beginning of a formula, with the wide forms of the signs.
_FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")

# A value of each column.
Row = tuple[Any, ...]


class TableSink(ResumableSink):
    """A table with a row per instance, which grows under a temporary name until `close`.

    The columns are those of `COLUMNS`: the image as in JSON Lines, the row of the instance in it from 0,
    class, category id, score of the mask, box x1 y1 x2 y2, area and centroid in pixels, and the track.
    Centroids of empty masks and tracks of instances without one are missing values.

    In CSV, a text that a spreadsheet would take for a formula gets an apostrophe in front. In both, bytes of
    a file name that are no text become escapes. Parquet is written in groups of `ROW_GROUP` rows.

    The table of a shard has the column `index` as well. Which shard it is of is in Parquet's metadata, and
    for CSV in a file of its own, `table.csv.shard.json`.

    Args:
        path: The file; its suffix decides the format.
        class_ids: The engine's category ids.
        class_names: The engine's class names.
        shard: Which part of a list of images is written.

    Raises:
        UsageError: the suffix is another.
        YolactError: pyarrow is missing, or the folder cannot be written to.
    """

    def __init__(
        self,
        path: str | Path,
        class_ids: tuple[int, ...],
        class_names: tuple[str, ...],
        shard: Shard | None = None,
    ) -> None:
        """Create the temporary file."""
        check_table(path)
        self.path = Path(path)
        self._shard = shard
        self._images = self._failed = 0
        self._written = False
        self._done = shard is not None and not shard.images
        self._classes = dict(zip(class_ids, map(_encodable, class_names), strict=True))
        self._file: TableFile | None = open_table(self.path, INDEX if shard else {})

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> list[Row]:
        """The rows."""
        boxes = result.boxes_float.astype(np.float64).round(2).tolist()
        tracks = result.track_ids
        found = zip(
            result.category_ids.tolist(),
            map(float, map(str, result.mask_scores)),
            boxes,
            result.areas.tolist(),
            rounded_centroids(result),
            [None] * len(result) if tracks is None else tracks.tolist(),
            strict=True,
        )
        return self._rows(frame.name, frame.index, found)

    def write(self, frame: Frame, prepared: list[Row]) -> None:
        self._append(prepared)

    def fail(self, frame: Frame, error: str) -> None:
        self._failed += 1

    def carry(self, line: dict[str, Any]) -> None:
        self._append(self._rows(line["image"], line.get("index", 0), map(_from_line, line["detections"])))

    def close(self) -> None:
        """Finish and rename the file; if no image was done, keep that of an earlier run instead."""
        file, self._file = self._file, None
        if file is None:
            return
        if not self._done and self.path.is_file():
            log.warning("no image was done: %s is kept", self.path)
            file.discard()
            return
        if self._shard is not None:
            file.describe({"shard": self._shard.to_json(), "done": self._images, "failed": self._failed})
        self._written = file.close()

    def discard(self) -> None:
        """Remove the temporary file; that of an earlier run stays."""
        file, self._file = self._file, None
        if file is not None:
            file.discard()

    def written(self) -> list[str]:
        return [str(self.path)] if self._written else []

    def _append(self, rows: list[Row]) -> None:
        if self._file is not None:
            self._file.append(rows)
            self._done = True
            self._images += 1

    def _rows(self, image: str, index: int, found: Iterable[Row]) -> list[Row]:
        """Rows from category, score, box, area, centroid or None, and track or None of each instance."""
        name = _encodable(image)
        more = (index,) if self._shard else ()
        return [
            (
                *(name, row, self._classes.get(category, ""), category, score, *box, area),
                *(centroid or (None, None)),
                None if track is None or track < 0 else track,
                *more,
            )
            for row, (category, score, box, area, centroid, track) in enumerate(found)
        ]


def _from_line(entry: dict[str, Any]) -> Row:
    """What `TableSink._rows` takes of a detection in JSON Lines."""
    x, y, width, height = entry["bbox"]
    box = x, y, round(x + width, 2), round(y + height, 2)
    track = entry.get("track_id")
    return entry["category_id"], entry["score"], box, entry["area"], entry.get("centroid"), track


def _encodable(text: str) -> str:
    """Text without halves of characters, which stand for bytes of a file name that are no text."""
    return text.encode("utf-8", "backslashreplace").decode()


def check_table(path: str | Path) -> None:
    """Raise an error if a table cannot be written with the suffix of `path`, or pyarrow is missing for it."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"cannot write a table as {path}; known suffixes are {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        require(f"the table {path}", "table", "pyarrow")


class TableFile(ABC):
    """A table that grows under a temporary name."""

    @abstractmethod
    def append(self, rows: list[Row]) -> None:
        """Append rows; on a YolactError nothing will be at the path but what was there before."""

    @abstractmethod
    def describe(self, summary: dict[str, Any]) -> None:
        """Write what the table of a shard says about it, before `close`."""

    @abstractmethod
    def close(self) -> bool:
        """Finish and rename the file; False if it was discarded."""

    @abstractmethod
    def discard(self) -> None:
        """Remove the temporary file; the previous file stays."""


def open_table(path: Path, more: Mapping[str, str] = MappingProxyType({})) -> TableFile:
    """A new table with the columns of `COLUMNS` and `more`, in the format of its suffix."""
    kind = _Csv if path.suffix.lower() == ".csv" else _Parquet
    return kind(path, {**COLUMNS, **more})


def shard_file(path: Path) -> Path:
    """Where it is written which shard a CSV table is of."""
    return path.with_name(f"{path.name}.shard.json")


class _Csv(TableFile):
    """A CSV file with a header."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        self._path = path
        self._summary: dict[str, Any] | None = None
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(path))
            self._file = GrowingFile(stack.enter_context(temporary.open("r+b", buffering=0)), path)
            self._file.append(f"{','.join(columns)}\n".encode())
            self._stack = stack.pop_all()

    def append(self, rows: Iterable[Row]) -> None:
        """Append all rows, or none and raise a YolactError."""
        lines = (",".join(map(_cell, row)) + "\n" for row in rows)
        self._file.append("".join(lines).encode())

    def describe(self, summary: dict[str, Any]) -> None:
        self._summary = summary

    def close(self) -> bool:
        self._stack.close()
        if self._summary is not None:
            write_json(shard_file(self._path), self._summary)
        return True

    def discard(self) -> None:
        self._stack.__exit__(YolactError, YolactError("discarded"), None)


def _cell(value: str | float | None) -> str:
    """A value of a CSV file; texts are always quoted, so that no spreadsheet splits one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    text = f"'{value}" if _FORMULA.match(value) else value
    return '"' + text.replace('"', '""') + '"'


class _Parquet(TableFile):
    """A Parquet file, compressed with Zstandard; only the current row group is in memory."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        import pyarrow
        from pyarrow import parquet

        self._path = path
        self._rows: list[Row] = []
        self._schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in columns.items()])
        with contextlib.ExitStack() as stack, writing(path):
            temporary = stack.enter_context(atomic_path(path))
            # A file of Python's: pyarrow cannot open every name, and its errors name no reason.
            file = stack.enter_context(temporary.open("r+b"))
            self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
            self._stack = stack.pop_all()

    def append(self, rows: list[Row]) -> None:
        self._rows += rows
        try:
            with writing(self._path):
                while len(self._rows) >= ROW_GROUP:
                    self._write_group()
        except YolactError:
            self.discard()
            raise

    def describe(self, summary: dict[str, Any]) -> None:
        self._writer.add_key_value_metadata({METADATA: json.dumps(summary).encode()})

    def close(self) -> bool:
        """Write the last group and the index, and rename the file; False if it was discarded."""
        if not self._writer.is_open:
            return False
        try:
            with writing(self._path), self._stack:
                self._write_group()
                self._writer.close()
        finally:
            self._writer.is_open = False
        return True

    def discard(self) -> None:
        self._writer.is_open = False  # or its destructor would write to the closed file
        self._stack.__exit__(YolactError, YolactError("discarded"), None)

    def _write_group(self) -> None:
        import pyarrow

        group, self._rows = self._rows[:ROW_GROUP], self._rows[ROW_GROUP:]
        if group:
            columns = zip(*group, strict=True)
            arrays = [
                pyarrow.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)
            ]
            self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))
