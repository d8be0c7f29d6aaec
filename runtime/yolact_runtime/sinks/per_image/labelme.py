"""labelme files of what was found, to correct by hand."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.exchange.instances import TOLERANCE
from yolact_runtime.files import is_file, read_json
from yolact_runtime.frames import Frame, Source
from yolact_runtime.outputs import identity_of
from yolact_runtime.results import Result
from yolact_runtime.sinks.items import FolderSink, write_item
from yolact_runtime.sinks.names import FreeNames, no_source
from yolact_runtime.sources.open import has_video

log = logging.getLogger(__name__)


class LabelmeSink(FolderSink):
    """A labelme file for each image; one that is there is kept, as it may have been corrected by hand.

    Args:
        folder: Folder of the files; `a.jpg` gets `a.json`, or `a_2.json` if that is of another image. It may
            be the folder of the images.
        masks: Exact masks instead of polygons.
        tolerance: Of the polygons, in pixels.
        overwrite: Replace labelme files of the same images that are there; other files are kept.
        is_source: As for `FreeNames`.

    Attributes:
        kept: Number of files that were there, and are kept.
    """

    what = "labelme files"

    def __init__(
        self,
        folder: Path,
        masks: bool = False,
        tolerance: float = TOLERANCE,
        overwrite: bool = False,
        is_source: Callable[[Path], bool] = no_source,
    ) -> None:
        self.kept = 0
        self.folder = folder
        self._masks = masks
        self._tolerance = tolerance
        self._overwrite = overwrite
        self._names = FreeNames(folder, is_source=is_source)
        self._closed = False

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> bytes:
        """The file's content."""
        if frame.time is not None:
            raise YolactError(f"{frame.name} is a frame of a video; labelme needs image files")
        path = image_path(frame.path, self.folder)
        return json.dumps(result.to_labelme(path, self._masks, self._tolerance), indent=2).encode()

    def carry(self, line: dict[str, Any]) -> None:
        self._names.carry(line, ".json")

    def write(self, frame: Frame, prepared: bytes) -> None:
        path = self._names.take(frame, ".json")
        while _is_of_another(path, frame.path):
            path = self._names.take(frame, ".json")
        if os.path.lexists(path) and not (self._overwrite and _image_of(path) is not None):
            self.kept += 1
        else:
            write_item(path, prepared, self._names)

    def close(self) -> None:
        """Say how many files were kept."""
        if self.kept and not self._closed and self._overwrite:
            log.warning("%s: kept %s that labelme did not write", self.folder, counted(self.kept, "file"))
        elif self.kept and not self._closed:
            log.warning(
                "%s: kept %s; --labelme-overwrite replaces those that are there",
                self.folder, counted(self.kept, "labelme file"),
            )  # fmt: skip
        self._closed = True


def _is_of_another(path: Path, image: Path) -> bool:
    """Whether a file is the labelme file of another image, such as one of the same name in another folder."""
    other = _image_of(path)
    return other is not None and is_file(other) and identity_of(other) != identity_of(image)


def _image_of(path: Path) -> Path | None:
    """The image of a labelme file, which may be missing; None if there is no such file."""
    if not is_file(path):
        return None
    try:
        return path.parent / read_json(path, "labelme file")["imagePath"]
    except (YolactError, TypeError, KeyError):
        return None


def image_path(image: Path, folder: Path) -> str:
    """The path of an image from the folder of its labelme file, with `/` between folders."""
    inside = Path(os.path.realpath(image.parent)) / image.name
    try:
        return Path(os.path.relpath(inside, os.path.realpath(folder))).as_posix()
    except ValueError:  # on another drive of Windows
        return inside.as_posix()


def check_stills(option: str, source: Source) -> None:
    """Raise a UsageError for a source with frames of a video, which a labelling tool cannot open."""
    if has_video(source):
        raise UsageError(
            f"{option} needs image files, and a source is a video or camera; write its frames as images"
            " first: ffmpeg -i clip.mp4 frames/%06d.png"
        )
