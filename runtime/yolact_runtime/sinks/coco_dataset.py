"""COCO annotation files of what was found, for labelling tools and training."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from yolact_runtime.errors import YolactError
from yolact_runtime.files import follow_links, is_stdout, stream_of, writing
from yolact_runtime.frames import Frame, ResumableSink
from yolact_runtime.masks import packed_rle
from yolact_runtime.results import Result
from yolact_runtime.sinks.coco import info_of
from yolact_runtime.sinks.growing import GrowingFile, GrowingJson
from yolact_runtime.sinks.image_ids import ImageNumbers
from yolact_runtime.sources.shard import Shard

log = logging.getLogger(__name__)


class CocoDatasetSink(ResumableSink):
    """A whole COCO annotation file: "images", "annotations" and "categories".

    Annotations have `id` (counted from 1), `image_id`, `category_id`, `segmentation`, `bbox` and `area` of
    the mask, `iscrowd` 0, and the `score` of the mask. Instances with an empty mask are left out. The file
    grows under a temporary name until `close`. The list of images grows in a second file, to be appended.

    Args:
        path: The file.
        class_ids: The engine's category ids.
        class_names: The engine's class names.
        numbers: The image ids; images without one are left out.
        polygons: Polygons instead of RLE.
        shard: Which part of a list of images is written; it is in "info".

    Attributes:
        kept: Whether `close` kept the file of an earlier run, because no image was done.

    Raises:
        YolactError: the folder cannot be written to.
    """

    def __init__(
        self,
        path: str | Path,
        class_ids: tuple[int, ...],
        class_names: tuple[str, ...],
        numbers: ImageNumbers,
        polygons: bool = False,
        shard: Shard | None = None,
    ) -> None:
        """Create the temporary files."""
        self.path = Path(path)
        self.kept = self._written = False
        self._done = shard is not None and not shard.images
        self._numbers = numbers
        self._polygons = polygons
        self._closed = False
        self._count = 0
        categories = [{"id": key, "name": name} for key, name in zip(class_ids, class_names, strict=True)]
        head = f'{{"info": {info_of(shard)}, "categories": {json.dumps(categories)}, "annotations": '
        with contextlib.ExitStack() as stack:
            self._annotations = GrowingJson(self.path, head)
            stack.callback(self._annotations.discard)
            folder = None if stream_of(path) is not None else follow_links(path).parent
            with writing(path):
                spool = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by `close`
            self._images = GrowingFile(spool, path)
            stack.pop_all()

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> tuple[int, int, list[dict]] | None:
        """The size of an image and its annotations without ids; None for an image without an id."""
        number = self._numbers.find(frame)
        if number is None:
            return None
        found = result.to_coco(number, polygons=self._polygons)
        return result.height, result.width, _annotations(found, result.height, result.width)

    def write(self, frame: Frame, prepared: tuple[int, int, list[dict]] | None) -> None:
        number = self._numbers.claim(frame)
        if number is not None and prepared is not None:
            self._append(number, frame.name, *prepared)
        self._done = True

    def carry(self, line: dict[str, Any]) -> None:
        self._done = True
        number, size = line["image_id"], (line["height"], line["width"])
        if number is None:
            return
        try:
            found = _annotations(line["detections"], *size)
        except Exception as error:  # of any kind, from pycocotools
            raise YolactError(f"cannot resume: the line of {line['image']} has a damaged mask") from error
        self._append(number, line["image"], *size, found)

    def close(self) -> None:
        """Append the images and rename the file; if no image was done, keep that of an earlier run."""
        if self._closed:
            return
        if not self._done and self.path.is_file():
            self.kept = True
            log.warning("no image was done: %s is kept", self.path)
            self.discard()
            return
        self._closed = True
        try:
            self._annotations.close(itertools.chain([b', "images": ['], self._images.blocks(), [b"]}"]))
            self._written = True
        finally:
            self._images.close()

    def discard(self) -> None:
        """Remove the temporary files; that of an earlier run stays."""
        if not self._closed:
            self._closed = True
            self._annotations.discard()
            self._images.close()

    def written(self) -> list[str]:
        return [str(self.path)] if self._written and not is_stdout(self.path) else []

    def _append(self, number: int, name: str, height: int, width: int, found: list[dict]) -> None:
        """Append an image and its annotations, or neither."""
        image = {"id": number, "file_name": self._numbers.file_name(number, name)}
        comma = ", " if self._images.size else ""
        entries = [json.dumps({"id": self._count + index, **one}) for index, one in enumerate(found, start=1)]
        before = self._annotations.size
        self._annotations.append(entries)
        try:
            self._images.append((comma + json.dumps({**image, "height": height, "width": width})).encode())
        except YolactError:
            self._annotations.truncate(before)
            raise
        self._count += len(found)


def _annotations(found: list[dict[str, Any]], height: int, width: int) -> list[dict[str, Any]]:
    """Annotations without ids from entries of COCO results with masks."""
    annotations = []
    for entry in found:
        mask = entry["segmentation"]
        rle = packed_rle(mask, height, width)
        area = int(coco_mask.area(rle))
        if area:
            annotations.append(
                {
                    "image_id": entry["image_id"],
                    "category_id": entry["category_id"],
                    "segmentation": mask,
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "area": area,
                    "iscrowd": 0,
                    "score": entry["score"],
                    **{key: entry[key] for key in ("track_id",) if key in entry},
                }
            )
    return annotations
