"""COCO results files."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.errors import YolactError
from yolact_runtime.files import is_stdout, stream_of
from yolact_runtime.frames import Frame, ResumableSink
from yolact_runtime.results import Result
from yolact_runtime.sinks.growing import GrowingJson
from yolact_runtime.sinks.image_ids import ImageNumbers
from yolact_runtime.sources.shard import Shard

log = logging.getLogger(__name__)

# Height and width of an image, and its entries with masks and with boxes, as JSON.
Prepared = tuple[int, int, list[str], list[str]]


class CocoSink(ResumableSink):
    """Three COCO files, which grow under temporary names until `close`; only one on standard output.

    In the folder of the mask file, `mask_detections.json`, are `bbox_detections.json` with boxes and their
    scores, and `images.json` with the "images" and "categories" that the ids refer to, so that
    `COCO("images.json").loadRes("mask_detections.json")` opens. For another name such as `run1.json` they are
    `run1_bbox.json` and `run1_images.json`. Without any detection the results are an empty list: valid JSON,
    although pycocotools' `loadRes` rejects it. Files of an earlier run are kept if no image was done.
    Standard output, a pipe or a device gets the masks only.

    The image list of a shard says in "info" which shard it is of, has the "index" of each image in the whole
    list, and ends with the numbers of "failed" images and of "unlisted" ones, which have no id.

    Args:
        path: The mask file.
        class_ids: The engine's category ids.
        class_names: The engine's class names.
        numbers: The image ids; images without one are left out.
        polygons: Polygons instead of RLE.
        shard: Which part of a list of images is written.

    Attributes:
        kept: Whether `close` kept the files of an earlier run.

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
        self.paths = coco_paths(Path(path))
        self.kept = self._written = False
        self._done = shard is not None and not shard.images
        self._shard = shard
        self._failed = self._unlisted = 0
        self._numbers = numbers
        self._polygons = polygons
        categories = [{"id": key, "name": name} for key, name in zip(class_ids, class_names, strict=True)]
        head = f'{{"info": {info_of(shard)}, "categories": {json.dumps(categories)}, "annotations": [],'
        head += ' "images": '
        around = [("", ""), ("", ""), (head, self._tail())]
        self._files = [GrowingJson(path, *ends) for path, ends in zip(self.paths, around, strict=False)]

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> Prepared | None:
        """The size of an image and its entries in the files of results; None for an image without an id."""
        number = self._numbers.find(frame)
        if number is None:
            return None
        masks = result.to_coco(number, polygons=self._polygons)
        return result.height, result.width, _dump(masks), _dump(result.to_coco(number, masks=False))

    def write(self, frame: Frame, prepared: Prepared | None) -> None:
        number = self._numbers.claim(frame)
        if number is not None and prepared is not None:
            self._append(number, frame.name, frame.index, prepared)
        else:
            self._leave_out(unlisted=1)
        self._done = True

    def fail(self, frame: Frame, error: str) -> None:
        self._leave_out(failed=1)

    def carry(self, line: dict[str, Any]) -> None:
        """Write what the line says."""
        self._done = True
        if (number := line["image_id"]) is None:
            self._leave_out(unlisted=1)
            return
        masks, boxes = [], []
        for entry in line["detections"]:
            mask = {key: value for key, value in entry.items() if key not in ("box_score", "centroid")}
            box = {key: value for key, value in mask.items() if key not in ("segmentation", "area")}
            masks.append(mask)
            boxes.append({**box, "score": entry.get("box_score", entry["score"])})
        prepared = line["height"], line["width"], _dump(masks), _dump(boxes)
        self._append(number, line["image"], line.get("index", 0), prepared)

    def close(self) -> None:
        """Rename the files; if no image was done, keep those of an earlier run instead."""
        files, self._files = self._files, []
        if files and not self._done and any(path.is_file() for path in self.paths):
            self.kept = True
            log.warning("no image was done: %s and the files that belong to it are kept", self.paths[0])
            self._files = files
            self.discard()
            return
        with contextlib.ExitStack() as stack:  # closes all, even if one fails
            for file in files:
                stack.callback(file.close)
        self._written = True

    def discard(self) -> None:
        """Remove the temporary files; those of an earlier run stay."""
        files, self._files = self._files, []
        for file in files:
            file.discard()

    def written(self) -> list[str]:
        return [", ".join(map(str, self.paths))] if self._written and not is_stdout(self.paths[0]) else []

    def _append(self, number: int, name: str, index: int, prepared: Prepared) -> None:
        """Append an image's entries to all files or to none."""
        height, width, *entries = prepared
        record = {"id": number, "file_name": self._numbers.file_name(number, name)}
        record |= {"height": height, "width": width}
        entries.append(_dump([{**record, "index": index} if self._shard else record]))
        sizes = [file.size for file in self._files]
        try:
            for file, some in zip(self._files, entries, strict=False):
                file.append(some)
        except YolactError:
            for file, size in zip(self._files, sizes, strict=True):
                file.truncate(size)
            raise

    def _leave_out(self, failed: int = 0, unlisted: int = 0) -> None:
        """Count an image of a shard that is not in the files."""
        self._failed += failed
        self._unlisted += unlisted
        if self._shard and len(self._files) == 3:
            self._files[2].change_tail(self._tail())

    def _tail(self) -> str:
        """What follows the list of images."""
        if self._shard is None:
            return "}"
        return f', "failed": {self._failed}, "unlisted": {self._unlisted}}}'


def info_of(shard: Shard | None) -> str:
    """The "info" of a COCO file, as JSON."""
    return json.dumps({} if shard is None else {"shard": shard.to_json()})


def coco_paths(path: Path) -> list[Path]:
    """The files of masks (`path` itself), boxes and images; the first only if it is not a regular file."""
    if stream_of(path) is not None:
        return [path]
    if path.name == "mask_detections.json":
        return [path, path.with_name("bbox_detections.json"), path.with_name("images.json")]
    return [path, path.with_name(f"{path.stem}_bbox.json"), path.with_name(f"{path.stem}_images.json")]


def _dump(entries: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(entries)[1:-1]] if entries else []  # in three quarters of the time of one by one
