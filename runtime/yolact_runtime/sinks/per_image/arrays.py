"""NumPy archives of results."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.frames import Frame
from yolact_runtime.results import Result
from yolact_runtime.sinks.items import FolderSink, write_item
from yolact_runtime.sinks.names import FreeNames, no_source


class ArraySink(FolderSink):
    """One `.npz` per image, which `numpy.load` opens without pickle.

    Content, best score first: `boxes` (n, 4) float32, x1 y1 x2 y2 in pixels; `scores` and `mask_scores` (n,)
    float32; `classes` (n,) int64, 0-based; `category_ids` (n,) int64; `counts` (n,) bytes, COCO's compressed
    RLE; `size` (2,) int64, height and width in pixels; `image`, its name; with tracks `track_ids` (n,) int64.
    A mask is `pycocotools.mask.decode({"size": size.tolist(), "counts": bytes(counts[i])})`.

    Args:
        folder: Folder of the archives; `a.jpg` becomes `a.npz`.
        sources, is_source: As for `FreeNames`.
    """

    what = "arrays"

    def __init__(
        self,
        folder: Path,
        sources: Collection[str] | None = (),
        is_source: Callable[[Path], bool] = no_source,
    ) -> None:
        self.folder = folder
        self._names = FreeNames(folder, sources, is_source)

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> bytes:
        """The file's content."""
        buffer = io.BytesIO()
        tracks: dict[str, Any] = {} if result.track_ids is None else {"track_ids": result.track_ids}
        np.savez(
            buffer,
            boxes=result.boxes_float,
            scores=result.scores,
            mask_scores=result.mask_scores,
            classes=result.classes,
            category_ids=result.category_ids,
            counts=np.array([rle["counts"] for rle in result.rles], np.bytes_),
            size=np.array([result.height, result.width]),
            image=np.array(frame.name),
            **tracks,
        )
        return buffer.getvalue()

    def carry(self, line: dict[str, Any]) -> None:
        self._names.carry(line, ".npz")

    def write(self, frame: Frame, prepared: bytes) -> None:
        write_item(self._names.take(frame, ".npz"), prepared, self._names)
