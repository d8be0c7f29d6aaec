"""A folder of Parquet parts with a row for each image, in any order, as lines of JSON Lines."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.batch.rows import CATEGORIES, COLUMNS, RECORD
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.files import read_json
from yolact_runtime.merge.order import Record, Spool, in_order
from yolact_runtime.merge.parquet import open_parquet, read_rows
from yolact_runtime.merge.shards import check_categories
from yolact_runtime.results import coco_entries
from yolact_runtime.sinks.jsonl import is_line
from yolact_runtime.sinks.names import FileNames
from yolact_runtime.untrusted import limit, parse_json

log = logging.getLogger(__name__)

_BATCH = 64  # rows
_FINISHED, _FAILED = 0, 1
_SHOWN = 10  # errors of images that are logged
_LONGEST_ERROR = 1 << 16  # characters


def parts_in(folder: Path) -> list[Path]:
    """The parts of a folder; names that begin with a dot or an underscore are left out.

    Raises:
        YolactError: there are none, or the folder cannot be read.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise YolactError(f"cannot read folder {folder}: {error.strerror or error}") from error
    paths = [folder / name for name in names if name.lower().endswith(".parquet") and name[0] not in "._"]
    if not paths:
        raise YolactError(f"folder {folder} has no .parquet file")
    return paths


class Parts:
    """The parts of a folder.

    Args:
        folder: As for `parts_in`.

    Attributes:
        paths: The parts.
        rows: Number of rows of all of them.
        categories: The classes that the parts list; empty if none does.

    Raises:
        YolactError: there are none, one cannot be read, or the run that writes them has not ended.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = parts_in(folder)
        self.rows = 0
        self.categories: list[dict[str, Any]] = []
        self._check_ended()
        for path in self.paths:
            with open_parquet(path, COLUMNS) as file:
                self.rows += file.metadata.num_rows
                if text := (file.schema_arrow.metadata or {}).get(CATEGORIES.encode()):
                    self._add_categories(path, text)

    def _check_ended(self) -> None:
        """Raise a YolactError if the run that writes the parts leaves a record, and has not ended."""
        path = self.folder / RECORD
        record = read_json(path) if path.exists() else {"state": "done"}
        if not isinstance(record, dict) or record.get("state") != "done":
            raise YolactError(
                f"the run that writes {self.folder} has not ended; wait for it, or run it again with --resume"
            )

    def _add_categories(self, path: Path, text: bytes) -> None:
        try:
            found = check_categories(path, parse_json(text))
        except ValueError as error:
            raise YolactError(f"{path}: its categories are damaged: {error}") from error
        if self.categories and self.categories != found:
            raise YolactError(f"{path} has other categories than the parts before; merge the rows of one run")
        self.categories = found

    def lines(self, spool: Spool, done: Callable[[], object]) -> Iterator[dict[str, Any]]:
        """A line for each path, sorted by path, with the index that the path has so, and a "file_name".

        A finished row replaces failed ones of the same path. Finished rows that are equal count as one.

        Args:
            spool: For the rows that memory does not hold.
            done: Called after each row is read the first time.

        Raises:
            YolactError: a part is damaged, or paths have finished rows that differ.
        """
        folders: set[str] = set()
        records = in_order(self._records(folders, done), spool)
        last, index, finished = None, -1, None
        equal, different, example = 0, 0, ""
        name_of: Callable[[str], str] | None = None
        for (path, state), row in records:
            name_of = name_of or _names(folders)
            if path == last:
                if state == _FINISHED and row == finished:
                    equal += 1
                elif state == _FINISHED:
                    different += 1
                    example = example or path
                continue
            last, index, finished = path, index + 1, row
            line = {"image": path, "index": index}
            if state == _FAILED:
                yield {**line, "error": row["error"]}
            else:
                copies = [dict(entry) for entry in row["detections"]]  # whose ids the caller sets
                yield {**line, "file_name": name_of(path), **row, "detections": copies}
        if different:
            raise YolactError(
                f"{counted(different, 'row')} of {self.folder} too many: paths such as {example} are finished"
                " more than once, and differ; give images names of their own in column path"
            )
        if equal:
            rows = counted(equal, "row is", "rows are")
            log.warning("%s twice in %s; each counts once", rows, self.folder)

    def _records(self, folders: set[str], done: Callable[[], object]) -> Iterator[Record]:
        """What is sorted: path and state, and what is left of a row."""
        for path in self.paths:
            with open_parquet(path, COLUMNS) as file:
                for number, row in enumerate(read_rows(path, file, list(COLUMNS), _BATCH), start=1):
                    if row["path"] is None:
                        raise YolactError(f"{path}: row {number} has no path, which merge needs")
                    record = _record(row)
                    if record is None:
                        raise YolactError(f"{path}: row {number} is damaged, or not of a batch of images")
                    folders.add(os.path.split(record[0][0])[0])
                    yield record
                    done()


def _record(row: dict[str, Any]) -> Record | None:
    """A row as a record; None for a damaged one."""
    path, error = row["path"], row["error"]
    if type(path) is not str or not 0 < len(path) <= limit("name") or "\0" in path:
        return None
    if error is not None:
        right = type(error) is str and len(error) <= _LONGEST_ERROR
        return ([path, _FAILED], {"error": error}) if right else None
    try:
        fields = [row[name] for name in ("boxes", "category_ids", "mask_scores", "scores", "rles", "area")]
        if len({len(field) for field in fields}) != 1 or len(fields[0]) > limit("candidates"):
            return None
        boxes = np.array(row["boxes"], np.float32).reshape(-1, 4)
        scores, mask_scores = (np.array(row[name], np.float32) for name in ("scores", "mask_scores"))
        found = coco_entries(0, boxes, row["category_ids"], mask_scores)
        for entry, rle, area in zip(found, row["rles"], row["area"], strict=True):
            entry |= {"segmentation": {"size": rle["size"], "counts": rle["counts"]}, "area": area}
        for entry, score, mask_score in zip(found, scores, mask_scores, strict=True):
            if score != mask_score:
                entry["box_score"] = float(str(score))
        value = {"image_id": 0, "height": row["height"], "width": row["width"], "detections": found}
        return ([path, _FINISHED], value) if is_line({"image": path, "index": 0, **value}) else None
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def _names(folders: set[str]) -> Callable[[str], str]:
    """A function from a path to its file name: relative to the folder that all are in, as in a run."""
    if not any("://" in folder for folder in folders):
        return FileNames({os.path.realpath(folder) for folder in folders}).of
    columns = zip(*(folder.split("/") for folder in folders), strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, columns))
    return lambda path: "/".join(path.split("/")[common:])


def report_failures(messages: list[str], failed: int) -> None:
    """Log why images failed, if these are few, or the first of them."""
    for message in messages[:_SHOWN]:
        log.error("%s", message)
    if failed > _SHOWN:
        log.error("and %s more failed", counted(failed - _SHOWN, "image"))
