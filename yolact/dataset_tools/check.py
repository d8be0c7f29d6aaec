"""Find problems in an annotation file before training or evaluation does."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from yolact.data.annotations import read_annotations
from yolact.data.layout import image_path
from yolact.data.segmentation import is_empty, to_rle
from yolact_runtime.errors import YolactError
from yolact_runtime.sources.images import read_image

Level = Literal["error", "warning"]
Problem = tuple[Level, str, str]
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]

# How far boxes and polygons may extend beyond the image, in pixels: rounding, not a mistake.
_SLACK = 1.0
# A box is far from its mask if its IoU with the mask's bounding box is below this, and a side is more than so
# many pixels off.
_BOX_IOU, _BOX_PIXELS = 0.5, 2.0


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        level: An "error" stops training or evaluation or makes them wrong; a "warning" is handled.
        kind: Name of the kind of problem.
        message: What is wrong, with the value.
        image_id: Id of the image in the file; None if the finding is not about one.
        annotation_id: Id of the annotation, likewise.
    """

    level: Level
    kind: str
    message: str
    image_id: Any = None
    annotation_id: Any = None


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs. `areas` are the quartiles (25, 50, 75%) of its mask areas in pixels."""

    category_id: int
    name: str
    instances: int
    crowds: int
    images: int
    areas: tuple[float, float, float] | None


@dataclass
class Report:
    """Everything found in one annotation file."""

    path: str
    images: int
    annotations: int
    images_without_annotations: int = 0
    findings: list[Finding] = field(default_factory=list)
    classes: list[ClassCount] = field(default_factory=list)

    def add(self, level: Level, kind: str, message: str, image_id: Any = None, number: Any = None) -> None:
        """Add a finding."""
        self.findings.append(Finding(level, kind, message, image_id, number))

    def count(self, level: Level) -> int:
        """How many findings of this level there are."""
        return sum(finding.level == level for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return asdict(self)


def _quietly(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    return items


def check_annotations(
    annotations: str | Path, images: str | Path | None = None, progress: Progress = _quietly
) -> Report:
    """Check every image and annotation of a COCO file.

    Args:
        annotations: The file.
        images: Folder of the images; each is opened. Without it, the sizes in the file are trusted.
        progress: Wraps an iterable to show progress: `progress(items, total, what)`.

    Raises:
        YolactError: `annotations` is not an annotation file, or `images` is not a folder.
    """
    content = read_annotations(annotations)
    report = Report(str(annotations), len(content["images"]), len(content["annotations"]))
    names = _check_categories(content["categories"], report)
    entries = _check_images(content["images"], report)
    sizes = {number: _declared(entry) or (0, 0) for number, entry in entries.items()}
    if images is not None:
        if not Path(images).is_dir():
            raise YolactError(f"image folder {images} does not exist")
        sizes |= _check_files(entries, Path(images), report, progress)
    _check_annotations(content["annotations"], names, sizes, report, progress)
    return report


def _whole(value: Any) -> int | None:
    """`value` if it is an int, else None."""
    return value if type(value) is int else None


def _declared(image: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of an image according to the file; None if it does not say."""
    height, width = _whole(image.get("height")), _whole(image.get("width"))
    return (height, width) if height and width and min(height, width) > 0 else None


def _size(size: tuple[int, int]) -> str:
    """A (height, width) as text: width x height."""
    return f"{size[1]}x{size[0]}"


def _check_categories(categories: list[dict[str, Any]], report: Report) -> dict[int, str]:
    """Check the entries of 'categories'; returns the usable names by id."""
    names: dict[int, str] = {}
    for category in categories:
        number, name = _whole(category.get("id")), category.get("name")
        if number is None or not isinstance(name, str) or not name.strip():
            report.add("error", "bad category", f"{category} needs a whole number 'id' and a text 'name'")
            continue
        if number in names:
            message = f"category id {number} is given twice: {names[number]!r} and {name!r}"
            report.add("error", "duplicate category id", message)
        elif name in names.values():
            report.add("error", "duplicate category name", f"two categories are called {name!r}")
        names.setdefault(number, name)
    if not names:
        report.add("error", "no categories", "'categories' holds no class to learn")
    return names


def _check_images(images: list[dict[str, Any]], report: Report) -> dict[int, dict[str, Any]]:
    """Check the entries of 'images'; returns the usable ones by id."""
    entries: dict[int, dict[str, Any]] = {}
    files: set[str] = set()
    for image in images:
        number, name = _whole(image.get("id")), image.get("file_name")
        if number is None or not isinstance(name, str):
            report.add("error", "bad image", f"{image} needs a whole number 'id' and a text 'file_name'")
            continue
        if number in entries:
            report.add("error", "duplicate image id", f"image id {number} is given twice ({name})", number)
        if name in files:
            report.add("warning", "file listed twice", f"{name} is the file of several images", number)
        if _declared(image) is None:
            message = f"{name}: height {image.get('height')!r}, width {image.get('width')!r}"
            report.add("warning", "no image size", message, number)
        files.add(name)
        entries[number] = image
    if not images:
        report.add("error", "no images", "'images' is empty")
    return entries


def _check_files(
    entries: dict[int, dict[str, Any]], folder: Path, report: Report, progress: Progress
) -> dict[int, tuple[int, int]]:
    """Open every image; returns the real (height, width) by id."""

    def measure(entry: dict[str, Any]) -> tuple[int, int] | Problem:
        path = image_path(folder, entry["file_name"])
        if not path.is_file():
            return "error", "missing image", f"{path} does not exist"
        try:
            height, width = read_image(path).shape[:2]
        except YolactError as error:
            return "error", "unreadable image", str(error)
        return height, width

    sizes: dict[int, tuple[int, int]] = {}
    with ThreadPoolExecutor() as pool:
        measured = progress(pool.map(measure, entries.values()), len(entries), "images")
        for (number, entry), found in zip(entries.items(), measured, strict=True):
            if len(found) == 3:
                level, kind, message = found
                report.add(level, kind, message, number)
                continue
            sizes[number] = found
            declared = _declared(entry)
            if declared is not None and declared != found:
                message = f"{entry['file_name']} is {_size(found)}, the file says {_size(declared)}"
                if declared == found[::-1]:
                    message += " (rotated: annotated without its EXIF orientation?)"
                report.add("error", "wrong image size", message, number)
    return sizes


def _check_annotations(
    annotations: list[dict[str, Any]],
    names: dict[int, str],
    sizes: dict[int, tuple[int, int]],
    report: Report,
    progress: Progress,
) -> None:
    """Check the entries of 'annotations' and count the classes."""
    areas: dict[int | None, list[int]] = defaultdict(list)
    instances: Counter[int | None] = Counter()
    crowds: Counter[int | None] = Counter()
    found_in: dict[int | None, set[int | None]] = defaultdict(set)
    for number, count in Counter(_whole(annotation.get("id")) for annotation in annotations).items():
        if number is not None and count > 1:
            message = f"annotation id {number} is given {count} times"
            report.add("error", "duplicate annotation id", message, None, number)
    for annotation in progress(annotations, len(annotations), "annotations"):
        image, category = _whole(annotation.get("image_id")), _whole(annotation.get("category_id"))
        size = (0, 0) if image is None else sizes.get(image, (0, 0))
        mask_problems, rle = _check_mask(annotation.get("segmentation"), size)
        box_problems = _check_box(annotation.get("bbox"), size, rle)
        problems = [*_check_ids(annotation, names, sizes), *mask_problems, *box_problems]
        for level, kind, message in problems:
            report.add(level, kind, message, annotation.get("image_id"), annotation.get("id"))
        found_in[category].add(image)
        if annotation.get("iscrowd"):
            crowds[category] += 1
            continue
        instances[category] += 1
        if rle is not None:
            areas[category].append(int(coco_mask.area(rle)))
    for number, name in sorted(names.items()):
        low, middle, high = np.percentile(areas[number] or [0], (25, 50, 75)).tolist()
        quartiles = (low, middle, high) if areas[number] else None
        report.classes.append(
            ClassCount(number, name, instances[number], crowds[number], len(found_in[number]), quartiles)
        )
        if not instances[number]:
            report.add("warning", "class without instances", f"{name!r} (id {number})")
    if annotations and all(is_empty(annotation.get("segmentation")) for annotation in annotations):
        message = "no annotation has a segmentation; boxes alone are not enough"
        report.add("error", "no segmentations", message)
    report.images_without_annotations = len(sizes.keys() - set().union(*found_in.values()))


def _check_ids(
    annotation: dict[str, Any], names: dict[int, str], sizes: dict[int, tuple[int, int]]
) -> list[Problem]:
    """What is wrong with the ids of an annotation."""
    problems: list[Problem] = []
    number, image, category = (annotation.get(key) for key in ("id", "image_id", "category_id"))
    if _whole(number) is None:
        problems.append(
            ("error", "no annotation id", f"the annotation's id is {number!r}, not a whole number")
        )
    elif number == 0:
        message = "pycocotools' own evaluation never counts annotation id 0 as found"
        problems.append(("warning", "annotation id 0", message))
    if _whole(image) is None or image not in sizes:
        problems.append(("error", "unknown image", f"image_id {image!r} is not in 'images'"))
    if _whole(category) is None or category not in names:
        problems.append(("error", "unknown category", f"category_id {category!r} is not in 'categories'"))
    return problems


def _check_mask(segmentation: Any, size: tuple[int, int]) -> tuple[list[Problem], dict[str, Any] | None]:
    """What is wrong with a segmentation in an image of `size` (height, width), and its RLE.

    If the size is unknown (0, 0), only an RLE can be checked, which has its own.
    """
    if is_empty(segmentation):
        message = "there is no mask; training ignores the region"
        return [("warning", "no segmentation", message)], None
    problems: list[Problem] = []
    if isinstance(segmentation, dict):
        own = segmentation.get("size")
        if size == (0, 0) and isinstance(own, list) and len(own) == 2:
            size = own[0], own[1]
        elif own != list(size):
            message = f"the RLE has size {own!r}, the image {list(size)} (height, width)"
            problems.append(("error", "wrong mask size", message))
    elif size == (0, 0):
        return [], None
    try:
        rle = to_rle(segmentation, *size)
    except ValueError as error:
        return [("error", "damaged segmentation", str(error))], None
    if isinstance(segmentation, list):
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
        over = max(-points.min(), (points - (size[1], size[0])).max())
        if over > _SLACK:
            message = f"a polygon extends {over:.0f} pixels beyond the image"
            problems.append(("warning", "polygon out of the image", message))
    if coco_mask.area(rle) == 0:
        problems.append(("warning", "empty mask", "the segmentation covers no pixel of the image"))
    return problems, rle


def _check_box(box: Any, size: tuple[int, int], rle: dict[str, Any] | None) -> list[Problem]:
    """What is wrong with a box in an image of `size` (height, width), or compared with its mask."""
    if not (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in box)
    ):
        return [("error", "bad box", f"bbox is {box!r} instead of [x, y, width, height]")]
    x, y, width, height = box
    if min(width, height) <= 0:
        message = f"bbox {box} has no area; training skips the annotation"
        return [("warning", "degenerate box", message)]
    if size == (0, 0):
        return []
    problems: list[Problem] = []
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        message = f"bbox {box} is outside the image ({_size(size)}); training skips the annotation"
        return [("warning", "box outside the image", message)]
    if min(x, y) < -_SLACK or x + width > size[1] + _SLACK or y + height > size[0] + _SLACK:
        message = f"bbox {box} extends beyond the image ({_size(size)}); it is clipped"
        problems.append(("warning", "box over the edge", message))
    if rle is not None and coco_mask.area(rle) > 0:
        low = np.maximum([x, y], 0)
        high = np.minimum([x + width, y + height], (size[1], size[0]))
        given, tight = np.concatenate([low, high - low]), coco_mask.toBbox(rle)
        corners = np.array([given, tight])
        corners[:, 2:] += corners[:, :2]
        far = np.abs(corners[0] - corners[1]).max() > _BOX_PIXELS
        if far and coco_mask.iou(given[None], tight[None], [0]).item() < _BOX_IOU:
            message = f"bbox {box}, but its mask spans {tight.tolist()} (x, y, width, height)"
            problems.append(("warning", "box far from mask", message))
    return problems
