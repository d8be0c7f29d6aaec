"""Convert labelme's JSON files, one for each image."""

from __future__ import annotations

import base64
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from yolact.data.segmentation import to_mask
from yolact.dataset_tools.builder import (
    CocoBuilder,
    Source,
    binary_mask,
    clean_label,
    decode,
    files_below,
    is_plain,
    key_of,
)
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.files import atomic_path, is_file, read_json
from yolact_runtime.sources.folders import IMAGES
from yolact_runtime.untrusted import limit

log = logging.getLogger(__name__)

# Suffixes that an image inside a labelme file keeps: labelme stores JPEG or PNG, whatever the image was.
_STORED = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_CIRCLE_POINTS = 64
_NO_AREA = ("point", "points", "line", "linestrip")
# Shapes that are outlines of three or more points: labelme's, and what X-AnyLabeling and others add.
_OUTLINES = ("polygon", "oriented_rectangle", "rotation", "quadrilateral")


@dataclass(frozen=True)
class _File:
    """A labelme file: its path, its shapes, and the height and width that it gives."""

    path: Path
    shapes: list[Any]
    height: Any
    width: Any


def from_labelme(source: Source) -> CocoBuilder:
    """Convert a folder (and its subfolders) of labelme files.

    Polygons, rectangles, circles and masks become instances; shapes with the same label and group id become
    one. Points and lines have no area and are left out. An image that is only inside its labelme file is
    written next to it (or to the folder of the images).

    Raises:
        YolactError: no labelme file.
    """
    claims: dict[Path, list[_File]] = defaultdict(list)
    paths = files_below(source.folder, [".json"])
    found, extracted = False, 0
    for path in source.progress(paths, len(paths), "reading labelme files"):
        try:
            content = read_json(path, "labelme file")
            if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
                log.warning("%s is not a labelme file and is skipped", path)
                continue
            found = True
            text = content.get("imagePath")
            if not is_plain(text) or len(text) > limit("name"):
                text = path.stem
            name = PurePosixPath(text.replace("\\", "/"))
            if not source.wants(key_of(path, source.folder)) and not source.wants(str(name)):
                continue
            image = _find_image(source, path, name)
            if image is None:
                image = _extract(source, path, name, content.get("imageData"))
                extracted += 1
            size = content.get("imageHeight"), content.get("imageWidth")
            claims[_absolute(image)].append(_File(path, content["shapes"], *size))
        except YolactError as error:
            found = True
            source.faults.append(str(error))
    if not found:
        raise YolactError(f"{source.folder} holds no labelme files (*.json with 'shapes')")
    if extracted:
        log.info("wrote %s found only inside labelme files", counted(extracted, "image"))
    builder = CocoBuilder(source.names)
    source.images = source.images or _common_folder(source.folder, claims)
    skipped = 0
    for image, size in source.measured(claims):
        file, *others = claims[image]
        if others:
            names = ", ".join(str(other.path) for other in claims[image])
            source.faults.append(f"{names} are all of the image {image}; none of them is converted")
        elif None not in (file.height, file.width) and (file.height, file.width) != size:
            given = f"{file.width!r:.20} x {file.height!r:.20}"
            source.faults.append(
                f"{file.path} is of an image of {given}, but {image} is {size[1]} x {size[0]} pixels"
            )
        else:
            builder.add_image(image.relative_to(_absolute(source.images)).as_posix(), *size)
            skipped += _add_shapes(builder, file, size, source.faults)
    if skipped:
        log.warning("left out %s, which have no area", counted(skipped, "point or line", "points and lines"))
    return builder


def _find_image(source: Source, path: Path, name: PurePosixPath) -> Path | None:
    """The image of the labelme file `path`, which calls it `name`; None if there is none.

    The name may have folders of another computer; else the image has the name of the labelme file.
    """
    if source.images:
        folders = [source.images / path.parent.relative_to(source.folder), source.images]
        inner = (part for part in name.parts if part not in ("/", ".."))
        places = [folders[0] / name.name, source.images.joinpath(*inner), source.images / name.name]
    else:
        folders = [path.parent]
        places = [path.parent / name, path.parent / name.name]
    suffixes = [*IMAGES, *map(str.upper, IMAGES)]
    places += [folder / (path.stem + suffix) for folder in folders for suffix in suffixes]
    return next((p for p in places if p.suffix.lower() in IMAGES and is_file(p)), None)


def _extract(source: Source, path: Path, name: PurePosixPath, data: Any) -> Path:
    """Write the image inside a labelme file to where labelme looks for it, and return its path.

    Raises:
        YolactError: there is none, or it is damaged.
    """
    folder = source.images / path.parent.relative_to(source.folder) if source.images else path.parent
    place = folder / (name.name.strip("./ ") or path.stem)
    if not isinstance(data, str) or not data:
        raise YolactError(f"{path}: there is no image {place}, and none inside the file")
    if place.suffix.lower() not in _STORED:
        place = place.with_name(place.name + ".png")
    if not is_file(place):
        if os.path.lexists(place):
            raise YolactError(
                f"{path}: {place} is no image file, and is not replaced by the one inside the file"
            )
        try:
            _decode_base64(data, "the one inside the file")
        except ValueError as error:
            raise YolactError(f"{path}: there is no image {place}, and {error}") from None
        with atomic_path(place) as temporary:
            temporary.write_bytes(base64.b64decode(data))
    return place


def _absolute(path: Path) -> Path:
    """The absolute path without `..`; links stay as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _common_folder(folder: Path, images: Iterable[Path]) -> Path:
    """The folder that file names are relative to: `folder`, or the first one above it that has all images."""
    root = _absolute(folder)
    images = list(images)
    while not all(image.is_relative_to(root) for image in images):
        root = root.parent
    return folder if root == _absolute(folder) else root


def _add_shapes(builder: CocoBuilder, file: _File, size: tuple[int, int], faults: list[str]) -> int:
    """Add the instances of a file, or faults; returns how many shapes have no area."""
    groups: dict[Any, list[int]] = {}
    skipped = 0
    for number, shape in enumerate(file.shapes):
        known = isinstance(shape, dict)
        if known and shape.get("shape_type") in _NO_AREA:
            skipped += 1
            continue
        group = shape.get("group_id") if known else None
        key = ("shape", number) if group is None else (str(shape.get("label")), str(group))
        groups.setdefault(key, []).append(number)
    for numbers in groups.values():
        try:
            _add_instance(builder, [file.shapes[number] for number in numbers], *size)
        except (ValueError, TypeError, OverflowError, AttributeError) as error:
            which = ", ".join(str(number + 1) for number in numbers)
            faults.append(f"{file.path}: shape{'s' * (len(numbers) > 1)} {which}: {error}")
    return skipped


def _add_instance(builder: CocoBuilder, shapes: list[Any], height: int, width: int) -> None:
    """Add the instance of one shape, or of several with the same label and group id.

    Raises:
        ValueError, TypeError, OverflowError: it is damaged; says how.
    """
    if not all(isinstance(shape, dict) for shape in shapes):
        raise ValueError("not an object with 'label' and 'points'")
    label = clean_label(shapes[0].get("label"))
    if any(shape.get("shape_type") == "mask" for shape in shapes):
        mask = np.zeros((height, width), bool)
        for shape in shapes:
            _add_to_mask(mask, shape)
        builder.add_mask(label, mask)
    else:
        builder.add_polygons(label, [_polygon(shape) for shape in shapes])


def _points(shape: dict[str, Any]) -> list[tuple[float, float]]:
    """The points of a shape, x and y in pixels."""
    points = shape.get("points")
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise ValueError("'points' is not a list of [x, y]")
    if not all(type(value) in (int, float) for point in points for value in point):
        raise ValueError("a point is not a pair of numbers")
    found = [(float(x), float(y)) for x, y in points]
    if not all(math.isfinite(value) for point in found for value in point):
        raise ValueError("a point is not finite")
    return found


def _decode_base64(text: str, what: str) -> np.ndarray:
    """The pixels of an image file in base64; raises a ValueError that begins with `what`."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError(f"{what} is not base64") from None
    try:
        return decode(data)
    except ValueError as error:
        raise ValueError(f"{what} {error}") from None


def _polygon(shape: dict[str, Any]) -> list[float]:
    """The outline of a shape as a flat x, y list."""
    points = _points(shape)
    kind = shape.get("shape_type") or "polygon"
    if kind == "rectangle":
        if len(points) not in (2, 4):
            raise ValueError(f"a rectangle of {counted(len(points), 'point')}; expected 2 or 4")
        if len(points) == 2:
            (x1, y1), (x2, y2) = points
            points = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        else:  # in any order, also turned
            points = cv2.convexHull(np.array(points, np.float32))[:, 0].tolist()
    elif kind == "circle":
        if len(points) != 2:
            raise ValueError(
                f"a circle of {counted(len(points), 'point')}; expected 2: its centre, one on it"
            )
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        angles = [2 * math.pi * step / _CIRCLE_POINTS for step in range(_CIRCLE_POINTS)]
        points = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    elif kind not in _OUTLINES:
        raise ValueError(f"unknown shape type {str(kind)[:40]!r}")
    if len(points) < 3:
        raise ValueError(f"a {kind} of {counted(len(points), 'point')}")
    return [value for point in points for value in point]


def _add_to_mask(mask: np.ndarray, shape: dict[str, Any]) -> None:
    """Add the pixels of a shape to a mask (height, width) bool."""
    height, width = mask.shape
    if shape.get("shape_type") != "mask":
        mask |= to_mask([_polygon(shape)], height, width).view(bool)
        return
    # A PNG of a region of the image, which begins at the first point.
    if not isinstance(shape.get("mask"), str):
        raise ValueError("no 'mask' (a PNG as base64)")
    values = _decode_base64(shape["mask"], "its mask")
    region = values > 0 if values.ndim == 2 else binary_mask(values)
    (left, top), *last = [(int(x), int(y)) for x, y in _points(shape)]
    for right, bottom in last[:1]:
        given = right - left + 1, bottom - top + 1
        if max(abs(given[0] - region.shape[1]), abs(given[1] - region.shape[0])) > 1:
            raise ValueError(
                f"its mask is {region.shape[1]} x {region.shape[0]}, its points say {given[0]} x {given[1]}"
            )
    region = region[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    top, left = max(0, top), max(0, left)
    mask[top : top + region.shape[0], left : left + region.shape[1]] |= region
