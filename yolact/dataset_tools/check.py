"""Find problems in an annotation file before training or evaluation does."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from yolact.data.annotations import AnnotationFile, parse_annotations
from yolact.data.reader.examples import why_nothing
from yolact.data.reader.findings import Finding, Level
from yolact.data.reader.image_files import decoded_size, find_images, size_problem
from yolact.data.segmentation import to_rle
from yolact_runtime.errors import YolactError
from yolact_runtime.files import is_file, is_folder

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


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
    """Check every image and annotation of a COCO file, as training and evaluation do, and more thoroughly.

    Args:
        annotations: The file.
        images: Folder of the images; each is opened. Without it, the sizes in the file are trusted.
        progress: Wraps an iterable to show progress: `progress(items, total, what)`.

    Raises:
        YolactError: `annotations` is not an annotation file, or `images` is not a folder.
    """
    file = parse_annotations(annotations, keep=None)
    findings = file.findings
    sizes = {image["id"]: (image["height"], image["width"]) for image in file.images if image["height"]}
    if images is not None:
        if not is_folder(images):
            raise YolactError(f"image folder {images} does not exist")
        sizes |= _open_images(file, Path(images), progress)
    classes = _count_classes(file, sizes, progress)
    total = len(file.annotations) + file.dropped
    if why := why_nothing(file):
        findings.add("error" if total else "warning", "nothing to learn", why)
    for count in classes:
        if not count.instances:
            findings.add("warning", "class without instances", f"{count.name!r} (id {count.category_id})")
    empty = {image["id"] for image in file.images} - {entry["image_id"] for entry in file.annotations}
    return Report(str(annotations), len(file.images), total, len(empty), list(findings), classes)


def _open_images(file: AnnotationFile, folder: Path, progress: Progress) -> dict[int, tuple[int, int]]:
    """Open every image and report what is wrong with it; returns the real (height, width) by id."""
    paths = find_images(file.images, folder, file.findings)

    def measure(image: dict[str, Any]) -> tuple[int, int] | tuple[str, str]:
        path = paths[image["id"]]
        if not is_file(path):
            return "missing image", f"{path} does not exist or is no file"
        try:
            height, width = decoded_size(path)
        except YolactError as error:
            return "unreadable image", str(error)
        problem = size_problem(image, height, width)
        return ("wrong image size", problem) if problem else (height, width)

    sizes: dict[int, tuple[int, int]] = {}
    with ThreadPoolExecutor() as pool:
        measured = progress(pool.map(measure, file.images), len(file.images), "images")
        for image, (first, second) in zip(file.images, measured, strict=True):
            if isinstance(first, str):
                file.findings.add("error", first, str(second), image["id"])
            else:
                sizes[image["id"]] = first, int(second)
    return sizes


def _count_classes(
    file: AnnotationFile, sizes: dict[int, tuple[int, int]], progress: Progress
) -> list[ClassCount]:
    """Count the classes, and report masks that cover no pixel."""
    areas: dict[int, list[int]] = defaultdict(list)
    instances: Counter[int] = Counter()
    crowds: Counter[int] = Counter()
    found_in: dict[int, set[int]] = defaultdict(set)
    for entry in progress(file.annotations, len(file.annotations), "annotations"):
        category, image, mask = entry["category_id"], entry["image_id"], entry["segmentation"]
        found_in[category].add(image)
        area = 0
        if mask is not None and image in sizes:
            try:
                area = int(coco_mask.area(to_rle(mask, *sizes[image])))
            except ValueError as error:
                file.findings.add("error", "damaged segmentation", str(error), image, entry["id"])
                continue
            if area == 0:
                message = "the segmentation covers no pixel of the image"
                file.findings.add("warning", "empty mask", message, image, entry["id"])
        if entry["iscrowd"]:
            crowds[category] += 1
            continue
        instances[category] += 1
        if mask is not None and image in sizes:
            areas[category].append(area)
    classes = []
    for category in sorted(file.categories, key=lambda category: category["id"]):
        number = category["id"]
        quartiles = None
        if areas[number]:
            low, middle, high = np.percentile(areas[number], (25, 50, 75)).tolist()
            quartiles = low, middle, high
        counts = instances[number], crowds[number], len(found_in[number])
        classes.append(ClassCount(number, category["name"], *counts, quartiles))
    return classes
