"""The segmentations of an annotation file: read, checked and measured many at a time."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from yolact.data.reader.findings import Level
from yolact.data.reader.values import real_number, shown, whole_number
from yolact.data.segmentation import (
    FAR,
    POLYGONS,
    check_polygon,
    checked_polygons,
    checked_rle,
    is_pairs,
    rle_totals,
)
from yolact_runtime.untrusted import limit

# How many annotations are checked together: their coordinates are copied into one array.
_CHUNK = 50_000
_RLE_CHUNK, _RLE_CHARACTERS = 5_000, 1 << 21
Report = Callable[[Level, str, int, str], None]


def pack_polygons(entry: dict[str, Any]) -> dict[str, Any]:
    """Store the polygons of an annotation as arrays of doubles, in a quarter of the memory.

    What is not a list of lists of numbers stays as it is.
    """
    segmentation = entry.get("segmentation")
    if type(segmentation) is list:
        try:  # noqa: SIM105 - contextlib takes longer, a million times
            entry["segmentation"] = [array("d", polygon) for polygon in segmentation]
        except (TypeError, OverflowError):
            pass
    return entry


def read_masks(
    annotations: Sequence[dict[str, Any]], sizes: np.ndarray, report: Report, repair: bool = False
) -> tuple[np.ndarray, set[int]]:
    """Check the segmentations of `annotations`, and store each as it is used from then on.

    That is a list of polygons (arrays of three or more points), a compressed RLE, or None if there is no
    mask, or if it is damaged, which is reported.

    Args:
        annotations: After `pack_polygons`; changed in place.
        sizes: (n, 2) height and width of their images; 0 if unknown.
        report: Called with level, kind, row and message.
        repair: Read what is refused otherwise but could be meant: polygons of pairs.

    Returns:
        (n, 4) float64: x1 y1 x2 y2 of each mask, not clipped to the image; NaN without a mask. The rows whose
        segmentation is wrong, which have been reported as errors.
    """
    damaged: set[int] = set()

    def note(level: Level, kind: str, row: int, message: str) -> None:
        if level == "error":
            damaged.add(row)
        report(level, kind, row, message)

    extents = np.full((len(annotations), 4), np.nan)
    outlined: list[int] = []
    runs: list[int] = []
    unchecked: list[int] = []
    side, pixels = limit("side"), limit("pixels")
    for row, entry in enumerate(annotations):
        segmentation = entry.get("segmentation")
        if type(segmentation) is dict and (compressed := _compressed(segmentation, side, pixels)):
            entry["segmentation"] = compressed
            unchecked.append(row)
            continue
        if type(segmentation) is not list or not _is_packed(segmentation):
            segmentation = entry["segmentation"] = _read_one(segmentation, row, note, repair)
        if type(segmentation) is list:
            outlined.append(row)
        elif segmentation is not None:
            runs.append(row)
    far = np.zeros(len(annotations), bool)
    for start in range(0, len(outlined), _CHUNK):
        part = outlined[start : start + _CHUNK]
        corners, points = _polygon_extents([annotations[row]["segmentation"] for row in part])
        at = np.array(part)
        extents[at] = corners
        reach = np.abs(corners).max(1)
        far[at] = ~((reach <= FAR) & (reach <= limit("outline") / (2 * points)))
    for row in np.flatnonzero(far).tolist():
        try:
            checked_polygons(annotations[row]["segmentation"], *sizes[row].tolist())
        except ValueError as error:
            note("error", "damaged segmentation", row, str(error))
            extents[row], annotations[row]["segmentation"] = np.nan, None
    for rows in _rle_chunks(annotations, unchecked):
        rles = [annotations[row]["segmentation"] for row in rows]
        sizes_of = np.array([rle["size"] for rle in rles], np.int64)
        sound = rle_totals([rle["counts"] for rle in rles]) == sizes_of.prod(1)
        for row in np.array(rows)[~sound].tolist():
            annotations[row]["segmentation"] = _read_one(annotations[row]["segmentation"], row, note, repair)
    runs = sorted(runs + [row for row in unchecked if annotations[row]["segmentation"] is not None])
    kept = [row for row in runs if _matches(annotations[row], sizes[row].tolist(), row, note)]
    for rows in _rle_chunks(annotations, kept):
        boxes = coco_mask.toBbox([annotations[row]["segmentation"] for row in rows])
        boxes[:, 2:] += boxes[:, :2]
        extents[rows] = boxes
    return extents, damaged


def _rle_chunks(annotations: Sequence[dict[str, Any]], rows: Sequence[int]) -> Iterator[list[int]]:
    """The rows, which have compressed RLEs, in parts of not too many characters."""
    chunk: list[int] = []
    characters = 0
    for row in rows:
        length = len(annotations[row]["segmentation"]["counts"])
        if chunk and (characters + length > _RLE_CHARACTERS or len(chunk) == _RLE_CHUNK):
            yield chunk
            chunk, characters = [], 0
        chunk.append(row)
        characters += length
    if chunk:
        yield chunk


def _compressed(segmentation: dict[str, Any], longest: int, pixels: int) -> dict[str, Any] | None:
    """A compressed RLE that has the right form, not checked further, with its counts in bytes; else None.

    Args:
        segmentation: As in the file.
        longest, pixels: Limits on the sides of masks and on their pixels.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (type(size) is list and len(size) == 2 and type(counts) is str and counts.isascii()):
        return None
    if not all(type(side) is int and 0 < side <= longest for side in size):
        return None
    if size[0] * size[1] > pixels or len(counts) > _RLE_CHARACTERS:
        return None
    return {"size": size, "counts": counts.encode("ascii")}


def _is_packed(segmentation: list[Any]) -> bool:
    """Whether a segmentation is polygons that need no further reading."""
    for polygon in segmentation:
        if type(polygon) is not array or len(polygon) < 6 or len(polygon) & 1:
            return False
    return bool(segmentation)


def _read_one(segmentation: Any, row: int, report: Report, repair: bool) -> Any:
    """An unusual segmentation or an RLE as `read_masks` stores it; None without a mask."""
    try:
        if isinstance(segmentation, dict) and segmentation:
            return checked_rle(_plain_rle(segmentation, row, report))
        if isinstance(segmentation, list) and segmentation:
            polygons = [polygon for polygon in _polygons(segmentation, row, report, repair) if len(polygon)]
            kept = [polygon for polygon in polygons if len(polygon) >= 6]
            if kept and len(kept) < len(polygons):
                text = "a polygon has fewer than three points, and is left out"
                report("note", "polygon of fewer than three points", row, text)
            return kept or None
    except ValueError as error:
        report("error", "damaged segmentation", row, str(error))
        return None
    if segmentation:
        text = f"segmentation is {type(segmentation).__name__} {shown(segmentation, 40)}, not polygons or RLE"
        report("error", "damaged segmentation", row, text)
    return None


def _polygons(segmentation: list[Any], row: int, report: Report, repair: bool) -> list[array]:
    """The polygons of a list that `pack_polygons` left, or that has odd or short ones.

    Raises:
        ValueError: they cannot be read.
    """
    pairs = is_pairs(segmentation)
    nested = any(isinstance(p, list) and p and isinstance(p[0], (list, array)) for p in segmentation)
    if pairs or nested:
        if not repair:
            what = "the segmentation" if pairs else "a polygon"
            raise ValueError(f"{what} is a list of pairs [x, y]; expected {POLYGONS}")
        report("note", "polygons of pairs", row, "a polygon is a list of pairs [x, y]; they are joined")
        segmentation = [_joined(part) for part in ([segmentation] if pairs else segmentation)]
    elif not any(isinstance(polygon, (list, array)) for polygon in segmentation):
        if len(segmentation) < 6:
            raise ValueError(f"the segmentation is {shown(segmentation, 60)}; expected {POLYGONS}")
        text = "the segmentation is [x, y, x, y, ...] without the outer list; it is one polygon"
        report("note", "polygon without an outer list", row, text)
        segmentation = [segmentation]
    polygons, text_values = [], False
    for polygon in segmentation:
        if not isinstance(polygon, (list, array)):
            raise ValueError(f"a polygon is {shown(polygon, 40)}; expected {POLYGONS}")
        numbers = [number for number in map(real_number, polygon) if number is not None]
        if len(numbers) < len(polygon):
            raise ValueError("a polygon holds something that is not a finite number")
        text_values = text_values or any(isinstance(value, str) for value in polygon)
        polygons.append(array("d", numbers))
        check_polygon(polygons[-1])
    if text_values:
        report("note", "numbers as text", row, "coordinates are text; they are read as numbers")
    return polygons


def _joined(polygon: Any) -> Any:
    """A list of pairs [x, y] as [x, y, x, y, ...]; anything else as it is.

    Raises:
        ValueError: some are not pairs.
    """
    if not any(isinstance(point, (list, array)) for point in polygon):
        return polygon
    if not all(isinstance(point, (list, array)) and len(point) == 2 for point in polygon):
        raise ValueError(f"a polygon is {shown(polygon, 40)}; expected {POLYGONS}")
    return [value for point in polygon for value in point]


def _plain_rle(segmentation: dict[str, Any], row: int, report: Report) -> dict[str, Any]:
    """The RLE with whole numbers where it spells them as text or as 3.0."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    plain = {"size": size, "counts": counts}
    for key, values in (("size", size), ("counts", counts)):
        if isinstance(values, list) and set(map(type, values)) != {int}:
            numbers = [whole_number(value) for value in values]
            if None not in numbers:
                plain[key] = numbers
                report("note", "numbers as text", row, f"the RLE's {key} is read as whole numbers")
    return plain


def _matches(entry: dict[str, Any], size: list[int], row: int, report: Report) -> bool:
    """Whether an RLE has the size of its image; if not, it is reported and removed."""
    own = entry["segmentation"]["size"]
    if 0 in size or own == size:
        return True
    text = f"the RLE has size {own}, the image {size} (height, width)"
    if own == size[::-1]:
        text += "; is it [width, height], or of the image before its EXIF orientation?"
    report("error", "wrong mask size", row, text)
    entry["segmentation"] = None
    return False


def _polygon_extents(segmentations: Sequence[Sequence[array]]) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) x1 y1 x2 y2 of n lists of polygons, not finite if a coordinate is not; (n,) their points."""
    parts = [polygon for polygons in segmentations for polygon in polygons]
    flat = np.frombuffer(b"".join(parts)).reshape(-1, 2)
    points = np.fromiter((sum(map(len, polygons)) // 2 for polygons in segmentations), np.int64)
    starts = np.concatenate([[0], np.cumsum(points)[:-1]])
    corners = np.minimum.reduceat(flat, starts), np.maximum.reduceat(flat, starts)
    return np.concatenate(corners, axis=1), points
