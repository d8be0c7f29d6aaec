"""JSON Lines: one line per image, written as soon as the image is done."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pycocotools import mask as coco_mask

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import (
    atomic_path,
    is_stdout,
    open_stream,
    stream_of,
    write_all,
    write_stdout,
    writing,
)
from yolact_runtime.frames import Frame, Sink
from yolact_runtime.masks import packed_rle
from yolact_runtime.results import Result
from yolact_runtime.sinks.growing import GrowingFile
from yolact_runtime.sinks.image_ids import ImageNumbers
from yolact_runtime.sources.shard import Shard
from yolact_runtime.temporary import try_lock
from yolact_runtime.untrusted import beyond, check_values, limit, parse_json

log = logging.getLogger(__name__)

_BEGIN = b'{"image": "'
_SHARD = b'{"shard": '
_NAMES = "image", "error", "file_name"


class JsonLinesSink(Sink):
    """A file of complete lines, at any moment.

    A line is `{"image", "index", "image_id", "height", "width", "detections"}`, plus "run" where there is
    one, and "time" in seconds for a frame of a video, or `{"image", "index", "error"}`. Detections are
    entries of COCO results, plus "centroid" (x and y in pixels; null for an empty mask), and "box_score" if
    the engine re-scores masks.

    The first line of a shard is `{"shard": ..., "categories": ...}`, and its lines have a "file_name", as in
    COCO files, after an "image_id" that is there.

    Args:
        path: The file, overwritten unless `resume`; a pipe or device; `-` for standard output.
        numbers: The image ids.
        polygons: Polygons instead of RLE.
        resume: Continue the file, if it exists: an incomplete last line and lines with "error" are dropped,
            and the images of the others are in `done`.
        source: Name of the source, for lines on standard output, a pipe or a device, which several share.
        run: A mark of all that decides what is found, for the lines: a file with another one is not resumed.
        shard: Which part of a list of images is written.
        categories: "id" and "name" of the classes, for the first line of a shard.

    Attributes:
        done: How often each image is in the resumed file.
        indices: The positions of its images in the whole list, if it is of a shard.

    Raises:
        YolactError: the file cannot be written, another run writes to it, or it contains something else.
    """

    def __init__(
        self,
        path: str | Path,
        numbers: ImageNumbers,
        polygons: bool = False,
        resume: bool = False,
        source: str = "",
        run: str = "",
        shard: Shard | None = None,
        categories: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Open and lock the file."""
        self.done: dict[str, int] = {}
        self.indices: set[int] = set()
        self._numbers = numbers
        self._polygons = polygons
        self._file: GrowingFile | BinaryIO | None = None
        stream = stream_of(path)
        self._source = {"source": source} if source and stream is not None else {}
        self._run = {"run": run} if run else {}
        self._shard = shard
        self._first = b"" if shard is None else _dump({"shard": shard.to_json(), "categories": categories})
        if stream is None:
            self._file = self._open(Path(path), resume)
        elif resume:
            raise UsageError(f"--resume cannot read {path} again; --jsonl needs a file")
        elif stream != 1:
            with writing(path):
                self._file = open_stream(stream)
        self._name = path
        if self._first and not (isinstance(self._file, GrowingFile) and self._file.size):
            self._append(self._first)

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> bytes:
        """The line."""
        number = self._numbers.find(frame)
        line: dict[str, Any] = {**self._head(frame), **self._run, "image_id": number}
        if self._shard and number is not None:
            line["file_name"] = self._numbers.file_name(number, frame.name)
        if frame.time is not None:
            line["time"] = round(frame.time, 6)
        detections = result.to_coco(0 if number is None else number, polygons=self._polygons)
        for entry, score, mask_score in zip(detections, result.scores, result.mask_scores, strict=True):
            entry["image_id"] = number
            if score != mask_score:
                entry["box_score"] = float(str(score))
        for entry, centroid in zip(detections, rounded_centroids(result), strict=True):
            entry["centroid"] = centroid
        return _dump({**line, "height": result.height, "width": result.width, "detections": detections})

    def write(self, frame: Frame, prepared: bytes) -> None:
        self._numbers.claim(frame)
        self._append(prepared)

    def fail(self, frame: Frame, error: str) -> None:
        self._append(_dump({**self._head(frame), "error": error}))

    def _head(self, frame: Frame) -> dict[str, Any]:
        """How a line begins."""
        return {"image": frame.name, **self._source, "index": frame.index}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def written(self) -> list[str]:
        return [] if is_stdout(self._name) else [str(self._name)]

    def _append(self, line: bytes) -> None:
        """Write a line to the file, pipe or device, or to standard output."""
        if self._file is None:
            write_stdout(line)
        elif isinstance(self._file, GrowingFile):
            self._file.append(line)
        else:
            with writing(self._name):
                write_all(self._file, line, self._name)

    def _open(self, path: Path, resume: bool) -> GrowingFile:
        """The file, locked and at its end; empty unless it is resumed."""
        with writing(path), contextlib.ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(_locked(path))
            if resume:
                file = self._resumed(file, path)
            else:
                file.truncate(0)
            file.seek(0, os.SEEK_END)
            opened.pop_all()
            return GrowingFile(file, path)

    def _resumed(self, file: BinaryIO, path: Path) -> BinaryIO:
        """The file with only the lines of images that are done."""
        failures = False
        first = self._resumed_first(path)
        end = len(first)
        for line, raw in read_lines(path):
            end += len(raw)
            if "error" in line:
                failures = True
            elif self._run and line.get("run", self._run["run"]) != self._run["run"]:
                raise YolactError(
                    f"cannot resume {path}: it was written with another engine, --score-threshold, --top-k,"
                    " --classes, --tile, --precision, --polygons or --track; keep them, or name another file"
                )
            else:
                self.done[line["image"]] = self.done.get(line["image"], 0) + 1
                if self._shard:
                    self.indices.add(line.get("index", -1))
        file.truncate(end)
        if not failures:
            return file
        with atomic_path(path) as temporary, temporary.open("wb") as kept:
            kept.write(first)
            kept.writelines(raw for line, raw in read_lines(path) if "error" not in line)
        with file:
            return _locked(path)

    def _resumed_first(self, path: Path) -> bytes:
        """The first line of a file of a shard; empty where there is none, or only part of it.

        Raises:
            YolactError: the file is not of this shard.
        """
        found, first = read_first(path)
        if found is None and self._shard and next(read_lines(path), None):
            raise YolactError(f"cannot resume {path}: it was written without --shard; name another file")
        if found is None or found == self._shard:
            return first
        if self._shard is None or (found.number, found.count) != (self._shard.number, self._shard.count):
            raise YolactError(
                f"cannot resume {path}: it is of {found}; give --shard {found.number}/{found.count}, or name"
                " another file"
            )
        if found.names != self._shard.names:
            raise YolactError(
                f"cannot resume {path}: its {found} is of another list of images, of {found.listed} and not"
                f" {self._shard.listed} or with other names; name another file"
            )
        what = "annotation file" if found.ids != self._shard.ids else "engine or with other options"
        raise YolactError(f"cannot resume {path}: it was written with another {what}; name another file")


def rounded_centroids(result: Result) -> list[list[float] | None]:
    """x and y of the centroid of each mask, to a hundredth of a pixel; None for an empty one."""
    pairs = result.centroids.round(2).tolist()
    return [pair if area else None for pair, area in zip(pairs, result.areas.tolist(), strict=True)]


def fill_areas(line: dict[str, Any]) -> None:
    """Add the area of each mask to a line of an earlier version, which has none.

    Raises:
        YolactError: a mask is damaged.
    """
    for entry in line["detections"]:
        if "area" not in entry:
            try:
                rle = packed_rle(entry["segmentation"], line["height"], line["width"])
                entry["area"] = int(coco_mask.area(rle))
            except Exception as error:  # of any kind, from pycocotools
                raise YolactError(f"cannot resume: the line of {line['image']} has a damaged mask") from error


def _dump(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def read_first(path: Path) -> tuple[Shard | None, bytes]:
    """The shard that a file is of, and its first line; None and nothing for other files."""
    with path.open("rb") as reader:
        raw = reader.readline(limit("text_bytes"))
    if not (raw.startswith(_SHARD) and raw.endswith(b"\n")):
        return None, b""
    try:
        shard = Shard.from_json(parse_json(raw)["shard"])
    except (ValueError, TypeError, KeyError):
        shard = None
    if shard is None:
        raise YolactError(f"{path}: line 1 was not written by yolact-infer; name another file")
    return shard, raw


def read_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Every complete line of a file but that about its shard, parsed and raw.

    Raises:
        YolactError: a line is not one that `JsonLinesSink` writes.
    """
    most = limit("text_bytes")
    with path.open("rb") as reader:
        for number in itertools.count(1):
            raw = reader.readline(most + 1)
            if not raw:
                return
            if len(raw) > most:
                raise YolactError(
                    f"cannot resume {path}: line {number} is longer than {beyond('text_bytes')}"
                )
            if number == 1 and raw.startswith(_SHARD):
                continue
            line = parse_line(raw)
            if not raw.endswith(b"\n"):
                if raw.startswith(_BEGIN[: len(raw)]) and (line is not None or not _is_json(raw)):
                    return  # cut off when the run was killed
                line = None
            if line is None:
                raise YolactError(
                    f"cannot resume {path}: line {number} was not written by yolact-infer; name another"
                    " file, or remove the line"
                )
            yield line, raw


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """A line that `JsonLinesSink` wrote; None for any other."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if is_line(line) else None


def is_line(line: Any) -> bool:
    """Whether a value is what `JsonLinesSink` writes about an image."""
    try:
        # Names of files may have bytes that are no text, which are written as halves of characters.
        check_values({key: value for key, value in line.items() if key not in _NAMES})
        if type(line.get("index", 0)) is not int:
            return False
        if "error" in line:
            return isinstance(line["image"], str) and isinstance(line["error"], str)
        right = isinstance(line["image"], str) and type(line["image_id"]) in (int, type(None))
        size = [line["height"], line["width"]]
        right &= all(type(side) is int and 0 < side <= limit("side") for side in size)
        right &= all(_is_detection(entry, line["image_id"], size) for entry in line["detections"])
        os.fsencode(line["image"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return bool(right)


def _is_detection(entry: Any, image_id: int | None, size: list[int]) -> bool:
    """Whether an entry has what other outputs are written from; a wrong mask could end pycocotools."""
    numbers = [entry["score"], entry.get("box_score", 0), *entry["bbox"], *(entry.get("centroid") or ())]
    right = type(entry["category_id"]) is int and len(entry["bbox"]) == 4 and entry["image_id"] == image_id
    # Lines of earlier versions have no area and centroid.
    right &= type(entry.get("area", 0)) is int and 0 <= entry.get("area", 0) <= size[0] * size[1]
    right &= len(entry.get("centroid") or (0, 0)) == 2
    right &= type(entry.get("track_id")) in (int, type(None))
    right &= all(abs(number or 0) < 1 << 63 for number in (entry["category_id"], entry.get("track_id")))
    mask = entry["segmentation"]
    if isinstance(mask, list):
        right &= bool(mask) and all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask)
        outline = [value for polygon in mask for value in polygon]
        numbers += outline
        right &= all(-1 <= value <= max(size) + 1 for value in outline)
    else:
        # The last number ends, too: pycocotools would read on.
        right &= mask["size"] == size and re.fullmatch("([0-o]*[0-O])?", mask["counts"]) is not None
    return right and all(type(one) in (int, float) and math.isfinite(one) for one in numbers)


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def _locked(path: Path) -> BinaryIO:
    """The file, created if missing, and locked against other runs until it is closed."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b", 0)
    locked = try_lock(file.fileno())
    if locked is False:
        file.close()
        raise YolactError(f"another run writes to {path}; wait for it, or name another file")
    if locked is None:
        log.warning("%s cannot be locked: make sure that no other run writes to it", path)
    return file
