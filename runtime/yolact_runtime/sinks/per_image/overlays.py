"""Annotated images."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.frames import Frame
from yolact_runtime.results import Result
from yolact_runtime.sinks.items import FolderSink, write_item
from yolact_runtime.sinks.names import FreeNames, no_source

# Suffixes that every OpenCV writes; overlays of other files become PNGs.
WRITABLE = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class OverlaySink(FolderSink):
    """An annotated image for each image; `VideoSink` handles frames of videos.

    Args:
        target: The folder; with `single` the file for the only image.
        single: There is one image only.
        sources, is_source: As for `FreeNames`.

    Attributes:
        drawn: Number of overlays written.

    Raises:
        UsageError: images cannot be written with the suffix of the single file.
    """

    def __init__(
        self,
        target: Path,
        single: bool = False,
        sources: Collection[str] | None = (),
        is_source: Callable[[Path], bool] = no_source,
    ) -> None:
        self.drawn = 0
        self.target = target
        self.folder = target.parent if single else target
        self._single = target if single else None
        self._names = FreeNames(target, sources, is_source)
        if single:
            check_writable_suffix(target)

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> tuple[str, bytes] | None:
        """The file's suffix and content; None for a frame of a video."""
        if frame.time is not None:
            return None
        suffix = _suffix(self._single or frame.path)
        done, data = cv2.imencode(suffix.lower(), result.draw(image))
        if not done:
            raise YolactError(
                f"the overlay of {frame.name} cannot be encoded: OpenCV has no encoder for {suffix}"
            )
        return suffix, data.tobytes()

    def written(self) -> list[str]:
        return [f"overlays in {self.target}"] if self.drawn else []

    def carry(self, line: dict[str, Any]) -> None:
        if "time" not in line:
            self._names.carry(line, _suffix(Path(line["image"])))

    def write(self, frame: Frame, prepared: tuple[str, bytes] | None) -> None:
        if prepared is None:
            return
        suffix, data = prepared
        if self._single is not None:
            write_item(self._single, data)
        else:
            write_item(self._names.take(frame, suffix), data, self._names)
        self.drawn += 1


def _suffix(path: Path) -> str:
    return path.suffix if path.suffix.lower() in WRITABLE else ".png"


def check_writable_suffix(path: Path) -> None:
    """Raise a UsageError if images cannot be written with the suffix of `path`."""
    if path.suffix.lower() not in WRITABLE:
        raise UsageError(f"cannot write an image as {path}; known suffixes are {', '.join(WRITABLE)}")
