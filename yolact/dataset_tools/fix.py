"""Repair an annotation file: write it in the form that all tools read, and list what was changed and lost."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from yolact.data.annotations import AnnotationFile, parse_annotations
from yolact.data.reader.findings import Findings
from yolact.data.reader.image_files import decoded_size, exif_orientation, find_images, size_problem
from yolact.data.segmentation import to_rle
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import is_folder, write_json

Entry = dict[str, Any]


def fix_annotations(
    annotations: str | Path,
    output: str | Path,
    images: str | Path | None = None,
    crowd_as_instances: bool = False,
) -> Findings:
    """Write a repaired annotation file.

    Args:
        annotations: The file; it stays as it is.
        output: The file to write.
        images: Folder of the images: names become those of the files, and sizes are compared.
        crowd_as_instances: Make crowd regions with a mask instances.

    Returns:
        "note": what was changed; "error": what could not be repaired, and is left out; "warning": what is
        left as it is, but should be looked at.

    Raises:
        UsageError: the output is the input.
        YolactError: the file cannot be read at all, the folder does not exist or has none of the images, or
            nothing is left.
    """
    source, target = Path(annotations), Path(output)
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"--output {output} is the file to repair; give another name")
    file = parse_annotations(source, repair=True)
    findings = file.findings
    kept = {image["id"]: image for image in file.images}
    entries = file.annotations
    if images is not None:
        kept = _with_files(file, Path(images))
    entries = [entry for entry in entries if entry["image_id"] in kept]
    lost = len(file.annotations) - len(entries)
    if lost:
        findings.add("error", "annotations of images that are left out", f"{lost} are left out, too")
    if not kept:
        raise YolactError(f"{source}: no image is left; nothing is written")
    categories = _merged(file, entries)
    if crowd_as_instances:
        for entry in entries:
            if entry["iscrowd"] and entry["segmentation"] is not None:
                entry["iscrowd"] = 0
                findings.add("note", "crowds", "it is an instance now", entry["image_id"], entry["id"])
    for entry in entries:
        _make_plain(entry, kept[entry["image_id"]], findings)
    lists = {"images": list(kept.values()), "annotations": entries, "categories": categories}
    # The reader stores polygons as arrays wherever they are, also in what is only copied.
    write_json(target, {**file.more, **lists}, default=list)
    return findings


def _with_files(file: AnnotationFile, folder: Path) -> dict[int, Entry]:
    """The images whose files are there and have the right size, by id, with the names of their files."""
    if not is_folder(folder):
        raise YolactError(f"image folder {folder} does not exist")
    paths = find_images(file.images, folder, file.findings)
    pairs = {(paths[image["id"]], image["file_name"]) for image in file.images}
    names = Counter(path for path, _ in pairs)
    inside: dict[int, list[Entry]] = {image["id"]: [] for image in file.images}
    for entry in file.annotations:
        inside[entry["image_id"]].append(entry)
    kept: dict[int, Entry] = {}
    for image in file.images:
        number, path = image["id"], paths[image["id"]]
        if names[path] > 1:
            continue  # which of the entries it belongs to is not known; this is reported already
        try:
            height, width = decoded_size(path)
        except YolactError as error:
            file.findings.add("error", "unreadable image", str(error), number)
            continue
        problem = size_problem(image, height, width)
        if problem and not _turn(image, path, (height, width), inside[number]):
            file.findings.add("error", "wrong image size", problem, number)
            continue
        if problem:
            text = f"{image['file_name']}: its annotations are turned as its EXIF orientation says"
            file.findings.add("note", "turned images", text, number)
        if image["height"] is None:
            text = f"{image['file_name']} is {width}x{height}"
            file.findings.add("note", "image sizes", text, number)
            _drop_other_sizes(inside[number], height, width, file.findings)
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else image["file_name"]
        if name != image["file_name"]:
            file.findings.add("note", "file names", f"{image['file_name']} becomes {name}", number)
        kept[number] = {**image, "file_name": name, "height": height, "width": width}
    return kept


def _drop_other_sizes(entries: list[Entry], height: int, width: int, findings: Findings) -> None:
    """Remove the masks that are not of an image of `height` x `width`; their regions are ignored."""
    for entry in entries:
        mask = entry["segmentation"]
        if isinstance(mask, dict) and mask["size"] != [height, width]:
            text = f"the RLE has size {mask['size']}, the image {[height, width]} (height, width)"
            findings.add("error", "wrong mask size", text, entry["image_id"], entry["id"])
            entry["segmentation"] = None


def _merged(file: AnnotationFile, entries: list[Entry]) -> list[Entry]:
    """The categories, of those with the same name the first only, which gets their annotations."""
    first: dict[str, int] = {}
    ids = {category["id"]: first.setdefault(category["name"], category["id"]) for category in file.categories}
    for entry in entries:
        entry["category_id"] = ids[entry["category_id"]]
    return [category for category in file.categories if ids[category["id"]] == category["id"]]


def _turn(image: Entry, path: Path, size: tuple[int, int], entries: list[Entry]) -> bool:
    """Turn annotations of an image before its EXIF orientation; returns False if that is not what they are.

    Args:
        image: Its entry, with the size before.
        path, size: Its file, and (height, width) in its orientation.
        entries: Its annotations, changed in place.
    """
    orientation = exif_orientation(path)
    if orientation < 5 or (image["width"], image["height"]) != size:
        return False
    height, width = image["height"], image["width"]
    mirrored_y, mirrored_x = orientation in (6, 7), orientation in (7, 8)

    def turn(points: np.ndarray) -> np.ndarray:  # (n, 2) x, y
        x, y = points.T
        return np.stack([height - y if mirrored_y else y, width - x if mirrored_x else x], axis=1)

    for entry in entries:
        mask = entry["segmentation"]
        if isinstance(mask, list):
            points = [turn(np.asarray(polygon).reshape(-1, 2)) for polygon in mask]
            entry["segmentation"] = [array("d", polygon.ravel().tolist()) for polygon in points]
        elif mask is not None:
            pixels = coco_mask.decode(mask).T  # rows are x now, columns y
            pixels = pixels[:: -1 if mirrored_x else 1, :: -1 if mirrored_y else 1]
            entry["segmentation"] = coco_mask.encode(np.asfortranarray(pixels))
        x, y, w, h = entry["bbox"]
        corners = turn(np.array([[x, y], [x + w, y + h]], np.float64))
        low, high = corners.min(0), corners.max(0)
        entry["bbox"] = [*low.tolist(), *(high - low).tolist()]
    image["height"], image["width"] = size
    return True


def _make_plain(entry: Entry, image: Mapping[str, Any], findings: Findings) -> None:
    """Replace what JSON does not hold, and compute a missing area."""
    mask = entry["segmentation"]
    if entry["area"] is None:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
        try:
            if mask is not None and image["height"]:
                entry["area"] = float(coco_mask.area(to_rle(mask, image["height"], image["width"])))
        except ValueError as error:
            findings.add("error", "damaged segmentation", str(error), entry["image_id"], entry["id"])
            mask = None
    if mask is None:
        entry["segmentation"] = []
    elif isinstance(mask, list):
        entry["segmentation"] = [[_short(value) for value in polygon] for polygon in mask]
    else:
        entry["segmentation"] = {"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")}


def _short(value: float) -> float | int:
    """A whole number without `.0`."""
    return int(value) if value.is_integer() else value
