"""Masks as PNGs: the numbers of all instances of an image, or one file for each instance."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolact_runtime.errors import YolactError
from yolact_runtime.frames import Frame
from yolact_runtime.masks import full_masks
from yolact_runtime.results import Result
from yolact_runtime.sinks.items import FolderSink, write_items
from yolact_runtime.sinks.names import FreeNames, no_source


class MaskSink(FolderSink):
    """A PNG per image with the number of an instance in each pixel, or one per instance.

    A pixel is 0 for background, else 1 + the row of its instance; where masks overlap, the lower row wins,
    which has the better score. PNGs have 8 bits, and 16 for more than 255 instances. With `per_instance`,
    `a.jpg` gives `a_0.png`, `a_1.png` and so on by row, 255 in the mask and 0 outside, overlaps in each.

    Args:
        folder: Folder of the PNGs; `a.jpg` becomes `a.png`, a frame of a video `clip.mp4_12.png`.
        per_instance: One file per instance.
        sources, is_source: As for `FreeNames`.
    """

    what = "masks"

    def __init__(
        self,
        folder: Path,
        per_instance: bool = False,
        sources: Collection[str] | None = (),
        is_source: Callable[[Path], bool] = no_source,
    ) -> None:
        self._per_instance = per_instance
        self.folder = folder
        self._names = FreeNames(folder, sources, is_source)

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> list[bytes]:
        """The files' contents."""
        if not self._per_instance:
            return [encode_png(frame, result.label_map())]
        return [
            # One at a time: all together may be larger than the image by far.
            encode_png(frame, full_masks([region], result.height, result.width)[0] * np.uint8(255))
            for region in result.regions
        ]

    def write(self, frame: Frame, prepared: list[bytes]) -> None:
        paths = self._names.take_several(frame, self._endings(len(prepared)))
        write_items(list(zip(paths, prepared, strict=True)), self._names)

    def carry(self, line: dict[str, Any]) -> None:
        self._names.carry(line, "", self._endings(len(line["detections"])))

    def _endings(self, count: int) -> list[str]:
        return [f"_{row}.png" for row in range(count)] if self._per_instance else [".png"]


def encode_png(frame: Frame, pixels: np.ndarray) -> bytes:
    """A PNG of (H, W) or (H, W, 4) BGRA pixels."""
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise YolactError(f"a PNG of {frame.name} cannot be encoded by OpenCV")
    return data.tobytes()
