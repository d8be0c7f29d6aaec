"""JSON Lines: one line per image, written as soon as the image is done."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import atomic_path, open_stream, stream_of, write_all, write_stdout, writing
from yolact_runtime.frames import Frame, Sink
from yolact_runtime.results import Result
from yolact_runtime.sinks.growing import GrowingFile
from yolact_runtime.sinks.image_ids import ImageNumbers
from yolact_runtime.temporary import try_lock

log = logging.getLogger(__name__)

_BEGIN = b'{"image": "'


class JsonLinesSink(Sink):
    """A file of complete lines, at any moment.

    A line is `{"image", "index", "image_id", "height", "width", "detections"}`, plus "time" in seconds for a
    frame of a video, or `{"image", "index", "error"}`. Detections are entries of COCO results, plus
    "box_score" if the engine re-scores masks.

    Args:
        path: The file, overwritten unless `resume`; a pipe or device; `-` for standard output.
        numbers: The image ids.
        polygons: Polygons instead of RLE.
        resume: Continue the file, if it exists: an incomplete last line and lines with "error" are dropped,
            and the images of the others are in `done`.

    Attributes:
        done: How often each image is in the resumed file.

    Raises:
        YolactError: the file cannot be written, another run writes to it, or it contains something else.
    """

    def __init__(
        self, path: str | Path, numbers: ImageNumbers, polygons: bool = False, resume: bool = False
    ) -> None:
        """Open and lock the file."""
        self.done: dict[str, int] = {}
        self._numbers = numbers
        self._polygons = polygons
        self._file: GrowingFile | BinaryIO | None = None
        stream = stream_of(path)
        if stream is None:
            self._file = self._open(Path(path), resume)
        elif resume:
            raise UsageError(f"--resume cannot read {path} again; --jsonl needs a file")
        elif stream != 1:
            with writing(path):
                self._file = open_stream(stream)
        self._name = path

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> bytes:
        """The line."""
        number = self._numbers.find(frame)
        line: dict[str, Any] = {"image": frame.name, "index": frame.index, "image_id": number}
        if frame.time is not None:
            line["time"] = round(frame.time, 6)
        detections = result.to_coco(0 if number is None else number, polygons=self._polygons)
        for entry, score, mask_score in zip(detections, result.scores, result.mask_scores, strict=True):
            entry["image_id"] = number
            if score != mask_score:
                entry["box_score"] = float(str(score))
        return _dump({**line, "height": result.height, "width": result.width, "detections": detections})

    def write(self, frame: Frame, prepared: bytes) -> None:
        self._numbers.claim(frame)
        self._append(prepared)

    def fail(self, frame: Frame, error: str) -> None:
        self._append(_dump({"image": frame.name, "index": frame.index, "error": error}))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

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
        end = 0
        for line, raw in read_lines(path):
            end += len(raw)
            if "error" in line:
                failures = True
            else:
                self.done[line["image"]] = self.done.get(line["image"], 0) + 1
        file.truncate(end)
        if not failures:
            return file
        with atomic_path(path) as temporary, temporary.open("wb") as kept:
            kept.writelines(raw for line, raw in read_lines(path) if "error" not in line)
        with file:
            return _locked(path)


def _dump(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def read_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Every complete line of a file, parsed and raw.

    Raises:
        YolactError: a line is not one that `JsonLinesSink` writes.
    """
    with path.open("rb") as reader:
        for number, raw in enumerate(reader, start=1):
            incomplete = not raw.endswith(b"\n")
            if incomplete and raw.startswith(_BEGIN[: len(raw)]):
                return
            line = None if incomplete else _parse(raw)
            if line is None:
                raise YolactError(
                    f"cannot resume {path}: line {number} was not written by yolact-infer; name another"
                    " file, or remove the line"
                )
            yield line, raw


def _parse(raw: bytes) -> dict[str, Any] | None:
    """A line that `JsonLinesSink` wrote; None for any other."""
    try:
        line = json.loads(raw)
        if "error" in line:
            return line if isinstance(line["image"], str) else None
        right = isinstance(line["image"], str) and isinstance(line["image_id"], int | None)
        right &= isinstance(line["height"], int) and isinstance(line["width"], int)
        right &= all({"category_id", "bbox", "score"} <= entry.keys() for entry in line["detections"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return line if right else None


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
