"""COCO results files."""

from __future__ import annotations

import json
import logging
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from yolact_runtime.errors import YolactError
from yolact_runtime.frames import Frame, Sink
from yolact_runtime.results import Result
from yolact_runtime.sinks.growing import GrowingJson
from yolact_runtime.sinks.image_ids import ImageNumbers

log = logging.getLogger(__name__)


class CocoSink(Sink):
    """Three COCO files, which grow under temporary names and get their own at `close`.

    Beside the masks' file, `mask_detections.json`, stand `bbox_detections.json` with the boxes and their
    scores, and `images.json` with the "images" and "categories" that the ids refer to, so that
    `COCO("images.json").loadRes("mask_detections.json")` opens. For another name such as `run1.json` they are
    `run1_bbox.json` and `run1_images.json`. Without any detection the results are an empty list: valid JSON,
    which pycocotools' `loadRes` itself does not accept. Files of an earlier run stay where no image was done.

    Args:
        path: The masks' file.
        class_ids: The engine's category ids.
        class_names: The engine's class names.
        numbers: The images' ids; images without one are left out.
        polygons: Outlines instead of run lengths.

    Attributes:
        kept: Whether `close` has left an earlier run's files as they were.

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
        self.masks_path = Path(path)
        _, self.boxes_path, self.images_path = coco_paths(self.masks_path)
        self.kept = False
        self._done = False
        self._numbers = numbers
        self._polygons = polygons
        categories = [{"id": key, "name": name} for key, name in zip(class_ids, class_names, strict=True)]
        head = f'{{"info": {{}}, "categories": {json.dumps(categories)}, "annotations": [], "images": '
        self._files = [
            GrowingJson(self.masks_path),
            GrowingJson(self.boxes_path),
            GrowingJson(self.images_path, head, "}"),
        ]

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> _Entries | None:
        """The entries of one image as JSON; None for one without an id."""
        number = self._numbers.find(frame)
        if number is None:
            return None
        name = PurePath(frame.name).name
        record = {"id": number, "file_name": name, "height": result.height, "width": result.width}
        masks = result.to_coco(number, polygons=self._polygons)
        boxes = result.to_coco(number, masks=False)
        return _Entries([json.dumps(e) for e in masks], [json.dumps(e) for e in boxes], [json.dumps(record)])

    def write(self, frame: Frame, prepared: _Entries | None) -> None:
        if self._numbers.claim(frame) is not None and prepared is not None:
            self._append(prepared)
        self._done = True

    def carry(self, line: dict[str, Any]) -> None:
        """Take over an image that an earlier run has finished.

        Args:
            line: Of its JSON Lines, as `JsonLinesSink` writes them.
        """
        self._done = True
        number = line["image_id"]
        if number is None:
            return
        record = {
            "id": number,
            "file_name": PurePath(line["image"]).name,
            "height": line["height"],
            "width": line["width"],
        }
        masks, boxes = [], []
        for entry in line["detections"]:
            mask = {key: value for key, value in entry.items() if key != "box_score"}
            masks.append(json.dumps(mask))
            box = {key: value for key, value in mask.items() if key != "segmentation"}
            boxes.append(json.dumps({**box, "score": entry.get("box_score", entry["score"])}))
        self._append(_Entries(masks, boxes, [json.dumps(record)]))

    def close(self) -> None:
        files, self._files = self._files, []
        fault: YolactError | None = None
        if files and not self._done and any(path.exists() for path in coco_paths(self.masks_path)):
            self.kept = True
            log.warning("no image was done: %s and the files beside it stay as they were", self.masks_path)
            for file in files:
                file.discard()
            return
        for file in files:
            try:
                file.close()
            except YolactError as error:
                fault = fault or error
        if fault is not None:
            raise fault

    def _append(self, entries: _Entries) -> None:
        sizes = [file.size for file in self._files]
        try:
            for file, some in zip(self._files, entries, strict=True):
                file.append(some)
        except YolactError:
            # An image is in all three files or in none.
            for file, size in zip(self._files, sizes, strict=True):
                file.truncate(size)
            raise


def coco_paths(path: Path) -> tuple[Path, Path, Path]:
    """The files of masks (`path` itself), boxes and images."""
    if path.name == "mask_detections.json":
        return path, path.with_name("bbox_detections.json"), path.with_name("images.json")
    return path, path.with_name(f"{path.stem}_bbox.json"), path.with_name(f"{path.stem}_images.json")


class _Entries(NamedTuple):
    """JSON of one image, for each of the files."""

    masks: list[str]
    boxes: list[str]
    images: list[str]
