"""Cut-outs: each instance in a PNG of its own, transparent outside its mask."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.frames import Frame
from yolact_runtime.results import Result
from yolact_runtime.sinks.items import FolderSink, write_items
from yolact_runtime.sinks.names import FreeNames, no_source
from yolact_runtime.sinks.per_image.masks import encode_png

_LONGEST = 80  # bytes of a class name in a file name, of the 255 that most file systems allow


class CutoutSink(FolderSink):
    """An RGBA PNG per instance, cut along the rectangle around its mask, with the mask as alpha.

    They are `<image>_<row>_<class>.png`. In the class, everything but letters, digits and hyphens becomes a
    hyphen, so the last two underscores separate the three. Instances with an empty mask have no file.

    Args:
        folder: Folder of the PNGs.
        class_ids: The engine's category ids.
        class_names: The engine's class names.
        sources, is_source: As for `FreeNames`.
    """

    what = "cut-outs"

    def __init__(
        self,
        folder: Path,
        class_ids: tuple[int, ...],
        class_names: tuple[str, ...],
        sources: Collection[str] | None = (),
        is_source: Callable[[Path], bool] = no_source,
    ) -> None:
        self._classes = dict(zip(class_ids, class_names, strict=True))
        self.folder = folder
        self._names = FreeNames(folder, sources, is_source)

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> dict[str, bytes]:
        """The files' contents by the ends of their names."""
        rows = np.flatnonzero(result.areas).tolist()
        endings = self._endings((row, int(result.category_ids[row])) for row in rows)
        return {
            ending: encode_png(frame, result.cutout(image, row))
            for ending, row in zip(endings, rows, strict=True)
        }

    def write(self, frame: Frame, prepared: dict[str, bytes]) -> None:
        paths = self._names.take_several(frame, list(prepared))
        write_items(list(zip(paths, prepared.values(), strict=True)), self._names)

    def carry(self, line: dict[str, Any]) -> None:
        found = enumerate(line["detections"])
        rows = ((row, entry["category_id"]) for row, entry in found if entry["area"])
        self._names.carry(line, "", self._endings(rows))

    def _endings(self, rows: Iterable[tuple[int, int]]) -> list[str]:
        return [f"_{row}_{safe_name(self._classes.get(key, ''))}.png" for row, key in rows]


def safe_name(name: str) -> str:
    """A class name as part of a file name: without separators, control characters and underscores."""
    safe = re.sub(r"[^\w-]|_", "-", name).encode("utf-8", "replace")[:_LONGEST]
    return safe.decode("utf-8", "ignore") or "class"
