"""Convert YOLO's text files, one for each image, and find the class names that their numbers stand for."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from yolact.dataset_tools.builder import CocoBuilder, Source, files_below, key_of
from yolact.dataset_tools.class_names import find_names
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.files import is_folder, read_text
from yolact_runtime.typed import first_few

log = logging.getLogger(__name__)

# How far relative coordinates may reach beyond the image, by rounding; they are clipped.
_TOLERANCE = 0.01
# Text files that are next to labels without being labels.
_NO_LABELS = ("classes", "obj", "labels", "predefined_classes", "train", "val", "valid", "test")
# So many outlines with four corners each, and no others, are probably boxes.
_BOXES = 20


def from_yolo(source: Source) -> CocoBuilder:
    """Convert YOLO's segmentation text: a file for each image, a line `class x y x y ..` for each instance.

    Coordinates are relative to the image. Class numbers, from 0, become category ids. Images without a file
    have no instances; without a given folder they are in `images` in place of `labels`, or next to the text.
    Lines `class x y width height` are boxes: these objects have no mask in the result.

    Raises:
        YolactError: no class names, no text files, or boxes only.
    """
    names = source.names or find_names(source.folder)
    labels = {key_of(path, source.folder): path for path in files_below(source.folder, [".txt"])}
    images = source.image_files(images_of(source.folder))
    files = {image: labels[key] for key, image in images.items() if key in labels}
    if not files and not (source.only and labels):
        folders = sorted({str(path.parent) for path in labels.values()} - {str(source.folder)})
        hint = f"; give one of {first_few(folders)}" if folders else ""
        raise YolactError(
            f"{source.folder} holds no text file with the name of an image in {source.images}{hint}"
        )
    for key, path in labels.items():
        other = path.stem.lower() in _NO_LABELS or path.name.lower().startswith("readme")
        if key not in images and source.wants(key) and not other:
            source.faults.append(f"{path} has no image in {source.images}")
    builder = CocoBuilder(names)
    kinds: list[int] = []
    for image, size in source.measured(images.values()):
        assert source.images is not None
        builder.add_image(image.relative_to(source.images).as_posix(), *size)
        if image in files:
            kinds += _add_lines(builder, files[image], names, size, source.faults)
    if twice := kinds.count(0):
        log.warning("left out %s given twice", counted(twice, "line"))
    kinds = [kind for kind in kinds if kind]
    boxes = kinds.count(2)
    if kinds and boxes == len(kinds):
        raise YolactError(
            f"{source.folder} holds boxes only (class x y width height); masks need YOLO's segmentation text:"
            " class x y x y x y .."
        )
    if boxes:
        log.warning(
            "%s of %d have a box and no outline: training takes them neither for examples nor for background",
            counted(boxes, "object"),
            len(kinds),
        )
    if len(kinds) >= _BOXES and set(kinds) == {4}:
        log.warning("all %d outlines have four corners: turned boxes (YOLO-OBB) are no masks", len(kinds))
    return builder


def _add_lines(
    builder: CocoBuilder, path: Path, names: Mapping[int, str], size: tuple[int, int], faults: list[str]
) -> list[int]:
    """Add the instances in a text file, or faults; returns the points of each: 2 of a box, 0 of a double."""
    try:
        lines = read_text(path, "text file", "list_bytes").splitlines()
    except YolactError as error:
        faults.append(str(error))
        return []
    points = []
    seen: set[str] = set()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line in seen:
            points += [0] if line else []
            continue
        seen.add(line)
        try:
            points.append(_add_line(builder, line, names, size))
        except ValueError as error:
            faults.append(f"{path}, line {number}: {error}")
    return points


def _add_line(builder: CocoBuilder, line: str, names: Mapping[int, str], size: tuple[int, int]) -> int:
    """Add the instance of a line to the last image; returns how many points it has, 2 for a box.

    Raises:
        ValueError: it cannot be one; says why.
    """
    height, width = size
    label, *texts = line.split()
    number, *values = map(_number, (label, *texts))
    if number not in names:
        known = ", ".join(map(str, list(names)[:20])) + ", .." * (len(names) > 20)
        raise ValueError(f"class {label[:40]}; there are names for {known}")
    if len(values) % 2 or len(values) < 4:
        hint = "a confidence, or a box with one?" if len(values) > 4 else "a polygon has three points or more"
        raise ValueError(f"{len(values)} coordinates; {hint}")
    if not all(map(math.isfinite, values)):
        raise ValueError("a coordinate is not finite")
    farthest = max(values, key=lambda value: abs(value - 0.5))
    if not -_TOLERANCE <= farthest <= 1 + _TOLERANCE:
        raise ValueError(
            f"coordinate {farthest:g}; expected 0 to 1, relative to the image"
            + ("; these are pixels" if farthest > 2 else "")
        )
    points = np.array(values).reshape(-1, 2)
    if len(points) == 2:
        centre, sides = points
        if sides.min() <= 0:
            raise ValueError(f"a box of {sides[0]:g} x {sides[1]:g}; its sides must be above 0")
        corners = np.concatenate([centre - sides / 2, centre + sides / 2])
        builder.add_box(names[int(number)], corners * (width, height, width, height))
    else:
        polygon = (points.clip(0, 1) * (width, height)).reshape(-1).tolist()
        builder.add_polygons(names[int(number)], [polygon])
    return len(points)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text[:40]!a} is not a number") from None


def images_of(labels: Path) -> Path:
    """The folder of the images for a folder of YOLO's text: `images` for the last `labels`, else itself."""
    return _swapped(labels, "labels", "images")


def labels_of(images: Path) -> Path:
    """The folder of YOLO's text for a folder of images: `labels` for the last `images`, else itself."""
    return _swapped(images, "images", "labels")


def _swapped(folder: Path, name: str, other: str) -> Path:
    """The folder whose path has `other` in place of the last `name`, if there is one; else `folder`."""
    parts = folder.absolute().parts
    if name not in parts:
        return folder
    last = len(parts) - 1 - parts[::-1].index(name)
    swapped = Path(*parts[:last], other, *parts[last + 1 :])
    return swapped if is_folder(swapped) else folder
