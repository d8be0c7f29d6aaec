"""Prepare COCO annotation files for evaluation: check, complete and match them with an engine's classes."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from yolact.data.annotations import read_annotations
from yolact.data.layout import image_path
from yolact.data.segmentation import is_empty, to_rle
from yolact_runtime import Metadata, YolactError
from yolact_runtime.sources.images import read_image
from yolact_runtime.typed import first_few

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroundTruth:
    """A COCO annotation file, completed so that pycocotools counts everything in it.

    Attributes:
        path: The file.
        images: Image records, each with height and width.
        annotations: With ids from 1, bbox, area, iscrowd, and compressed RLE as segmentation (None without
            a mask).
        categories: Category records.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]

    @property
    def class_names(self) -> dict[int, str]:
        """Names by category id, sorted by id; a name that is not unique gets its id appended."""
        names = {category["id"]: category["name"] for category in self.categories}
        uses = Counter(names.values())
        return {
            number: name if uses[name] == 1 else f"{name} ({number})"
            for number, name in sorted(names.items())
        }

    def subset(self, ids: Collection[int]) -> GroundTruth:
        """The same with the images of these ids only, and their annotations."""
        return replace(
            self,
            images=[image for image in self.images if image["id"] in ids],
            annotations=[entry for entry in self.annotations if entry["image_id"] in ids],
        )


def read_ground_truth(annotations: str | Path, images: str | Path) -> GroundTruth:
    """Read a COCO annotation file. One without annotations (a test set) is allowed.

    Args:
        annotations: The file.
        images: Folder of the images; one is opened only if the file lacks its size.

    Raises:
        YolactError: not an annotation file, or a wrong entry; names the entry.
    """
    path = Path(annotations)
    lists = read_annotations(path, required=("images", "categories"))
    records = {
        number: _with_size(entry, Path(images))
        for number, entry in _by_id(lists["images"], "images", "file_name", path).items()
    }
    categories = _by_id(lists["categories"], "categories", "name", path)
    # With new ids: for pycocotools, 0 means "not matched".
    completed = [
        _completed(entry, number, records, categories, path)
        for number, entry in enumerate(lists["annotations"], start=1)
    ]
    return GroundTruth(path, list(records.values()), completed, list(categories.values()))


def _by_id(entries: list[dict[str, Any]], key: str, text: str, path: Path) -> dict[int, dict[str, Any]]:
    """The entries of the list `key` by id; each must have a string at `text`."""
    found: dict[int, dict[str, Any]] = {}
    for entry in entries:
        number = entry.get("id")
        if type(number) is not int or not isinstance(entry.get(text), str):
            raise YolactError(f"{path}: {entry} in {key!r} needs a whole number 'id' and a text {text!r}")
        if number in found:
            raise YolactError(f"{path}: id {number} is given twice in {key!r}")
        found[number] = entry
    if not found:
        raise YolactError(f"{path}: {key!r} is empty; there is nothing to evaluate")
    return found


def _with_size(record: dict[str, Any], images: Path) -> dict[str, Any]:
    """The image record with height and width."""
    if all(type(record.get(side)) is int and record[side] > 0 for side in ("height", "width")):
        return record
    try:
        height, width = read_image(image_path(images, record["file_name"])).shape[:2]
    except YolactError:
        height = width = 1  # evaluation will report it as failed, and its annotations as missed
    return {**record, "height": height, "width": width}


def _completed(
    annotation: dict[str, Any],
    number: int,
    records: dict[int, dict[str, Any]],
    categories: dict[int, dict[str, Any]],
    path: Path,
) -> dict[str, Any]:
    """An annotation, checked and completed as `GroundTruth` says, with the id `number`."""
    what = f"{path}: annotation {annotation.get('id', number)}"
    for key, known in (("image_id", records), ("category_id", categories)):
        if type(annotation.get(key)) is not int or annotation[key] not in known:
            raise YolactError(f"{what} has {key} {annotation.get(key)!r}, which the file does not list")
    record = records[annotation["image_id"]]
    segmentation = annotation.get("segmentation")
    try:
        rle = None if is_empty(segmentation) else to_rle(segmentation, record["height"], record["width"])
    except ValueError as error:
        raise YolactError(f"{what}: {error}") from error
    bbox = annotation.get("bbox")
    if bbox is None and rle is not None:
        bbox = coco_mask.toBbox(rle).tolist()
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(_is_number(value) for value in bbox)):
        raise YolactError(f"{what}: bbox is {bbox!r} instead of [x, y, width, height]")
    area = annotation.get("area")
    if not _is_number(area):
        area = bbox[2] * bbox[3] if rle is None else float(coco_mask.area(rle))
    return {
        "id": number,
        "image_id": record["id"],
        "category_id": annotation["category_id"],
        "bbox": bbox,
        "area": area,
        "iscrowd": int(bool(annotation.get("iscrowd", 0))),
        "segmentation": rle,
    }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def match_categories(metadata: Metadata, truth: GroundTruth) -> dict[int, int]:
    """Map category ids of the engine to those of the file, for the classes that both have.

    Classes are matched by id and name, else by name. If no name matches but all ids do, the ids are used
    (names in another language).

    Raises:
        YolactError: the engine and the file have no class in common.
    """
    theirs = {category["id"]: _plain(category["name"]) for category in truth.categories}
    by_name = {name: number for number, name in reversed(theirs.items())}
    ours = dict(zip(metadata.category_ids, map(_plain, metadata.class_names), strict=True))
    matches = {
        number: number if theirs.get(number) == name else by_name[name]
        for number, name in ours.items()
        if name in by_name
    }
    if not matches and set(ours) == set(theirs):
        log.warning("%s has other names for the engine's classes; matching them by category id", truth.path)
        return {number: number for number in ours}
    if not matches:
        raise YolactError(
            f"{truth.path} has none of the engine's classes: it has {first_few(theirs.values())}, the engine"
            f" {first_few(ours.values())}"
        )
    unknown = [name for number, name in theirs.items() if number not in matches.values()]
    if unknown:
        log.warning(
            "the engine does not have %s of %s; these objects count as missed", first_few(unknown), truth.path
        )
    return matches


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())
