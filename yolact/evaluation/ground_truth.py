"""Prepare COCO annotation files for evaluation: check, complete and match them with an engine's classes."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from yolact.data.annotations import read_annotations
from yolact.data.reader.examples import why_nothing
from yolact.data.reader.findings import Findings
from yolact.data.reader.image_files import check_sizes, find_images
from yolact.data.segmentation import check_size, to_rle
from yolact_runtime import Metadata, YolactError
from yolact_runtime.errors import UsageError, counted
from yolact_runtime.sources.images import read_image
from yolact_runtime.typed import first_few, nearest

log = logging.getLogger(__name__)

# Masks may reach a little beyond the box of an object that has no mask, and still be of that object.
_MARGIN = 0.1


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

    def only(self, categories: Collection[int]) -> GroundTruth:
        """The same with the annotations of these categories only; all images stay."""
        return replace(
            self,
            annotations=[entry for entry in self.annotations if entry["category_id"] in categories],
            categories=[category for category in self.categories if category["id"] in categories],
        )

    def with_masks(self) -> tuple[list[dict[str, Any]], int]:
        """The annotations for the evaluation of masks, and how many of them have no mask.

        An object without a mask is a crowd region of its box: what is found there is neither right nor wrong,
        as in training. The region is a tenth larger, because masks are not found to the pixel.
        """
        sizes = {image["id"]: (image["height"], image["width"]) for image in self.images}
        entries = [
            entry if entry["segmentation"] is not None else _region_of_box(entry, *sizes[entry["image_id"]])
            for entry in self.annotations
        ]
        return entries, sum(entry["segmentation"] is None for entry in self.annotations)


def _region_of_box(entry: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """The annotation as a crowd region of its box, enlarged by `_MARGIN` of its sides and a pixel."""
    x, y, w, h = entry["bbox"]
    across, down = _MARGIN * w + 1, _MARGIN * h + 1
    x1, y1 = max(x - across, 0), max(y - down, 0)
    x2, y2 = min(x + w + across, width), min(y + h + down, height)
    # Eight numbers: pycocotools takes four for a box of its own kind.
    polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
    inside = x1 < x2 and y1 < y2
    return {**entry, "iscrowd": 1, "segmentation": to_rle([polygon] if inside else [], height, width)}


def read_ground_truth(
    annotations: str | Path, images: str | Path, crowd_as_instances: bool = False
) -> GroundTruth:
    """Read a COCO annotation file. One without annotations (a test set) is allowed.

    Args:
        annotations: The file.
        images: Folder of the images; one is opened only if the file lacks its size.
        crowd_as_instances: Take crowd regions with a mask for instances.

    Raises:
        YolactError: not an annotation file, or an entry is wrong or ambiguous; names the entry.
    """
    # Class names that occur twice get their ids.
    file = read_annotations(annotations, ignored=["duplicate category name"])
    if file.dropped and not file.annotations:
        raise YolactError(f"{file.path}: {why_nothing(file)}")
    findings = Findings()
    paths = find_images(file.images, images, findings)
    findings.raise_errors(file.path)
    records = {image["id"]: image for image in file.images}
    unknown = {number for number, image in records.items() if not image["height"]}
    inside: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in file.annotations if unknown else ():
        inside[entry["image_id"]].append(entry)
    for number in unknown:
        height, width = _real_size(paths[number], inside[number])
        records[number] = {**records[number], "height": height, "width": width}
    # With new ids: for pycocotools, 0 means "not matched".
    completed = [
        _completed(entry, number, records[entry["image_id"]], crowd_as_instances, file.path)
        for number, entry in enumerate(file.annotations, start=1)
    ]
    if completed and all(entry["iscrowd"] for entry in completed):
        log.warning(
            "%s: all of %s are crowd regions, which are ignored; if they are single objects, make them"
            " instances with yolact-data fix --crowd-as-instances",
            *(file.path, counted(len(completed), "annotation")),
        )
    return GroundTruth(file.path, list(records.values()), completed, file.categories)


def _real_size(path: Path, annotations: list[dict[str, Any]]) -> tuple[int, int]:
    """(height, width) of an image; if it cannot be read, a size in which its annotations count as missed."""
    try:
        height, width = read_image(path).shape[:2]
    except YolactError:
        masks = [entry["segmentation"] for entry in annotations if isinstance(entry["segmentation"], dict)]
        corners = [(y + h, x + w) for x, y, w, h in (entry["bbox"] for entry in annotations)]
        height, width = masks[0]["size"] if masks else np.ceil(np.max([(1, 1), *corners], axis=0)).astype(int)
        try:
            check_size(int(height), int(width))
        except ValueError:
            return 1, 1
    return int(height), int(width)


def _completed(
    annotation: dict[str, Any], number: int, record: dict[str, Any], crowd_as_instances: bool, path: Path
) -> dict[str, Any]:
    """An annotation, completed as `GroundTruth` says, with the id `number`."""
    rle, bbox, area = annotation["segmentation"], annotation["bbox"], annotation["area"]
    size = record["height"], record["width"]
    if rle is not None:
        try:
            rle = to_rle(rle, *size)
        except ValueError as error:
            raise YolactError(f"{path}: annotation {annotation['id']}: {error}") from error
    covered = 0.0 if rle is None else float(coco_mask.area(rle))
    if area is None:
        area = covered or bbox[2] * bbox[3]
    return {
        "id": number,
        "image_id": record["id"],
        "category_id": annotation["category_id"],
        "bbox": bbox,
        "area": area,
        "iscrowd": int(annotation["iscrowd"] and not (crowd_as_instances and covered)),
        "segmentation": rle if covered else None,
    }


def check_image_sizes(truth: GroundTruth, folder: str | Path) -> None:
    """Compare the sizes in the file with those of a sample of the images, before the work.

    Raises:
        YolactError: an image has another size than the annotation file says.
    """
    findings = Findings()
    check_sizes(truth.images, find_images(truth.images, folder, findings), findings)
    findings.raise_errors(truth.path)


def match_categories(
    metadata: Metadata, truth: GroundTruth, classes: Collection[int] | None = None
) -> dict[int, int]:
    """Map category ids of the engine to those of the file, for the classes that both have.

    `classes` are the 0-based indices of those to map; None for all.

    Classes are matched by id and name, else by name, else by name regardless of case, spaces and underscores
    if only one class of each side has it. If no name matches but all ids do, the ids are used (names in
    another language).

    Raises:
        YolactError: the engine and the file have no class in common.
        UsageError: the file does not have one of `classes`.
    """
    matches = match_names(metadata, truth)
    if classes is not None:
        wanted = {metadata.category_ids[i]: metadata.class_names[i] for i in sorted(classes)}
        if missing := [name for number, name in wanted.items() if number not in matches]:
            near = nearest(missing[0], truth.class_names.values())
            raise UsageError(f"{truth.path} does not have the class {missing[0]!r}; {near}")
        return {number: matches[number] for number in wanted}
    names = {category["id"]: category["name"] for category in truth.categories}
    if unknown := [name for number, name in names.items() if number not in matches.values()]:
        log.warning(
            "the engine does not have %s of %s; these objects count as missed; --classes"
            " evaluates some classes only",
            first_few(unknown),
            truth.path,
        )
    return matches


def match_names(metadata: Metadata, truth: GroundTruth) -> dict[int, int]:
    """Same as `match_categories` for all classes, without the warning about others of the file."""
    theirs = {category["id"]: category["name"] for category in truth.categories}
    ours = dict(zip(metadata.category_ids, metadata.class_names, strict=True))
    matches: dict[int, int] = {}
    for spelling in (str, _plain):
        # Those that are left are matched by another spelling, if it is that of one class only on each side.
        mine = {number: spelling(name) for number, name in ours.items() if number not in matches}
        free = {n: spelling(name) for n, name in theirs.items() if n not in matches.values()}
        by_name: defaultdict[str, list[int]] = defaultdict(list)
        for number, name in free.items():
            by_name[name].append(number)
        uses = Counter(mine.values())
        for number, name in mine.items():
            if free.get(number) == name and (spelling is str or uses[name] == len(by_name[name]) == 1):
                matches[number] = number
            elif len(by_name[name]) == uses[name] == 1:
                matches[number] = by_name[name][0]
            elif by_name[name] and spelling is _plain:
                log.warning(
                    "%s: class %r of the engine could be any of %s; it is not matched",
                    *(truth.path, ours[number], first_few(repr(theirs[n]) for n in by_name[name])),
                )
    if not matches and set(ours) == set(theirs):
        log.warning("%s has other names for the engine's classes; matching them by category id", truth.path)
        return {number: number for number in ours}
    if not matches:
        raise YolactError(
            f"{truth.path} has none of the engine's classes: it has {first_few(theirs.values())}, the engine"
            f" {first_few(ours.values())}"
        )
    return matches


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())
