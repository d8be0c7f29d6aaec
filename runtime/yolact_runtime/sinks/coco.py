"""COCO results files."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from yolact_runtime.errors import YolactError
from yolact_runtime.frames import Frame, Sink
from yolact_runtime.results import Result
from yolact_runtime.sinks.growing import GrowingJson
from yolact_runtime.sinks.image_ids import ImageNumbers

log = logging.getLogger(__name__)


class CocoSink(Sink):
    """Three COCO files, which grow under temporary names until `close`.

    In the folder of the mask file, `mask_detections.json`, are `bbox_detections.json` with boxes and their
    scores, and `images.json` with the "images" and "categories" that the ids refer to, so that
    `COCO("images.json").loadRes("mask_detections.json")` opens. For another name such as `run1.json` they are
    `run1_bbox.json` and `run1_images.json`. Without any detection the results are an empty list: valid JSON,
    although pycocotools' `loadRes` rejects it. Files of an earlier run are kept if no image was done.

    Args:
        path: The mask file.
        class_ids: The engine's category ids.
        class_names: The engine's class names.
        numbers: The image ids; images without one are left out.
        polygons: Polygons instead of RLE.

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
    ) -> None:
        """Create the temporary files."""
        self.paths = coco_paths(Path(path))
        self.kept = False
        self._done = False
        self._numbers = numbers
        self._polygons = polygons
        categories = [{"id": key, "name": name} for key, name in zip(class_ids, class_names, strict=True)]
        head = f'{{"info": {{}}, "categories": {json.dumps(categories)}, "annotations": [], "images": '
        masks, boxes, images = self.paths
        self._files = [GrowingJson(masks), GrowingJson(boxes), GrowingJson(images, head, "}")]

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> list[list[str]] | None:
        """The entries of one image for each file, as JSON; None for an image without an id."""
        number = self._numbers.find(frame)
        if number is None:
            return None
        masks = result.to_coco(number, polygons=self._polygons)
        boxes = result.to_coco(number, masks=False)
        return _entries(number, frame.name, result.height, result.width, masks, boxes)

    def write(self, frame: Frame, prepared: list[list[str]] | None) -> None:
        if self._numbers.claim(frame) is not None and prepared is not None:
            self._append(prepared)
        self._done = True

    def carry(self, line: dict[str, Any]) -> None:
        """Take over an image of an earlier run; `line` is one that `JsonLinesSink` wrote."""
        self._done = True
        if (number := line["image_id"]) is None:
            return
        masks, boxes = [], []
        for entry in line["detections"]:
            mask = {key: value for key, value in entry.items() if key != "box_score"}
            box = {key: value for key, value in mask.items() if key != "segmentation"}
            masks.append(mask)
            boxes.append({**box, "score": entry.get("box_score", entry["score"])})
        self._append(_entries(number, line["image"], line["height"], line["width"], masks, boxes))

    def close(self) -> None:
        """Rename the files; if no image was done, keep those of an earlier run instead."""
        files, self._files = self._files, []
        if files and not self._done and any(path.exists() for path in self.paths):
            self.kept = True
            log.warning("no image was done: %s and the files that belong to it are kept", self.paths[0])
            for file in files:
                file.discard()
            return
        with contextlib.ExitStack() as stack:  # closes all, even if one fails
            for file in files:
                stack.callback(file.close)

    def _append(self, entries: list[list[str]]) -> None:
        """Append an image's entries to all three files or to none."""
        sizes = [file.size for file in self._files]
        try:
            for file, some in zip(self._files, entries, strict=True):
                file.append(some)
        except YolactError:
            for file, size in zip(self._files, sizes, strict=True):
                file.truncate(size)
            raise


def coco_paths(path: Path) -> tuple[Path, Path, Path]:
    """The files of masks (`path` itself), boxes and images."""
    if path.name == "mask_detections.json":
        return path, path.with_name("bbox_detections.json"), path.with_name("images.json")
    return path, path.with_name(f"{path.stem}_bbox.json"), path.with_name(f"{path.stem}_images.json")


def _entries(
    number: int, name: str, height: int, width: int, masks: list[dict], boxes: list[dict]
) -> list[list[str]]:
    """JSON of one image for each of the files."""
    record = {"id": number, "file_name": PurePath(name).name, "height": height, "width": width}
    return [[json.dumps(entry) for entry in entries] for entries in (masks, boxes, [record])]
