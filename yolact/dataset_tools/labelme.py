"""Convert labelme's JSON files, one for each image."""

from __future__ import annotations

import base64
import logging
import math
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from yolact.data.segmentation import to_mask
from yolact.dataset_tools.builder import CocoBuilder, Source
from yolact_runtime.errors import YolactError
from yolact_runtime.files import read_json
from yolact_runtime.sources.images import read_image

log = logging.getLogger(__name__)

_CIRCLE_POINTS = 64


def from_labelme(source: Source) -> dict[str, Any]:
    """Convert a folder (and its subfolders) of labelme files.

    Polygons, rectangles, circles and masks become instances; shapes with the same label and group id become
    one. Points and lines have no area and are skipped.

    Raises:
        YolactError: no labelme file, or a damaged one; names it.
    """
    builder = CocoBuilder(source.names)
    found = False
    skipped = 0
    for path in sorted(source.folder.rglob("*.json")):
        content = read_json(path, "labelme file")
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            log.warning("%s is not a labelme file and is skipped", path)
            continue
        found = True
        name = PurePosixPath(str(content.get("imagePath") or path.stem).replace("\\", "/"))
        if not source.wants(name.stem):
            continue
        image = _image(source, path, name)
        height, width = content.get("imageHeight"), content.get("imageWidth")
        if type(height) is not int or type(width) is not int:
            height, width = read_image(image).shape[:2]
        root = source.images or source.folder
        builder.add_image(
            image.relative_to(root).as_posix() if image.is_relative_to(root) else image.name, height, width
        )
        try:
            skipped += _add_shapes(builder, content["shapes"], height, width)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise YolactError(f"{path}: damaged shape: {error}") from error
    if not found:
        raise YolactError(f"{source.folder} holds no labelme files (*.json with 'shapes')")
    if skipped:
        log.warning("skipped %d points and lines, which have no area", skipped)
    return builder.content()


def _image(source: Source, path: Path, name: PurePosixPath) -> Path:
    """The image of the labelme file `path`."""
    if source.images:
        return source.images / name.name
    return path.parent.joinpath(*(part for part in name.parts if part != "."))


def _add_shapes(builder: CocoBuilder, shapes: list[dict[str, Any]], height: int, width: int) -> int:
    """Add the instances of an image; returns how many shapes have no area."""
    groups: dict[Any, tuple[str, list[dict[str, Any]]]] = {}
    skipped = 0
    for number, shape in enumerate(shapes):
        if shape.get("shape_type", "polygon") in ("point", "points", "line", "linestrip"):
            skipped += 1
            continue
        group = shape.get("group_id")
        key = ("shape", number) if group is None else (shape["label"], group)
        groups.setdefault(key, (shape["label"], []))[1].append(shape)
    for label, members in groups.values():
        if any(shape.get("shape_type") == "mask" for shape in members):
            full = np.zeros((height, width), bool)
            for shape in members:
                full |= _mask(shape, height, width)
            builder.add_mask(label, full)
        else:
            builder.add_polygons(label, [_polygon(shape) for shape in members])
    return skipped


def _polygon(shape: dict[str, Any]) -> list[float]:
    """The outline of a shape as a flat x, y list."""
    points = [(float(x), float(y)) for x, y in shape["points"]]
    kind = shape.get("shape_type", "polygon")
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points[0], points[-1]
        points = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    elif kind == "circle":
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        angles = [2 * math.pi * step / _CIRCLE_POINTS for step in range(_CIRCLE_POINTS)]
        points = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    elif kind != "polygon":
        raise ValueError(f"unknown shape type {kind!r}")
    if len(points) < 3:
        raise ValueError(f"a polygon of {len(points)} points")
    return [value for point in points for value in point]


def _mask(shape: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The mask (height, width) bool of a shape."""
    if shape.get("shape_type") != "mask":
        return to_mask([_polygon(shape)], height, width).astype(bool)
    # A PNG of a region of the image, which begins at the first point.
    data = np.frombuffer(base64.b64decode(shape["mask"], validate=True), np.uint8)
    region = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if region is None:
        raise ValueError("its mask is not an image")
    left, top = (round(float(value)) for value in shape["points"][0])
    mask = np.zeros((height, width), bool)
    region = region[: max(0, height - top), : max(0, width - left)]
    mask[top : top + region.shape[0], left : left + region.shape[1]] = region > 0
    return mask
