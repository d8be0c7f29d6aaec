"""COCO segmentations: polygons and run-length encoding (RLE), compressed or not, checked before use.

pycocotools trusts its input. It reads and writes past the end of its buffers for an RLE with a wrong sum,
with more runs than pixels or with numbers beyond 32 bits, and for masks of 2**31 pixels; it takes polygons of
two points for boxes. So everything that comes from a file passes `to_rle` first.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from yolact.data.reader.values import shown
from yolact_runtime.rle import rle_counts
from yolact_runtime.untrusted import beyond, limit

# Polygons are rasterised in steps of a fifth of a pixel, also those outside the image: far coordinates would
# take all memory. A polygon may reach as far as so many pixels or sides of its image.
FARTHEST, FAR, _FAR_SIDES = 1e6, 10_000, 16
POLYGONS = "polygons [[x, y, x, y, ...], ...]"


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Convert any COCO segmentation to compressed RLE of an image of `height` x `width` pixels.

    Polygons are rasterised by pycocotools' rule; those of fewer than three points cover nothing.

    Args:
        segmentation: a list of polygons `[[x, y, x, y, ...], ...]` in pixels (lists, or arrays of doubles),
            or `{"size": [h, w], "counts": list | str | bytes}`.

    Returns:
        `{"size": [height, width], "counts": bytes}`.

    Raises:
        ValueError: not a segmentation, an RLE of another image size, or beyond a limit; says what is wrong.
    """
    check_size(height, width)
    if isinstance(segmentation, dict):
        return _rle_of_image(segmentation, height, width)
    polygons = checked_polygons(segmentation, height, width)
    if not polygons:
        return runs_to_rle([height * width], height, width)
    return _union(coco_mask.frPyObjects(polygons, height, width))


def runs_to_rle(runs: Sequence[int] | np.ndarray, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of a mask from its runs, counted down the columns, background first."""
    rle: dict[str, Any] = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return rle


def _union(rles: list[dict[str, Any]]) -> dict[str, Any]:
    """The union of masks. Few at a time: pycocotools goes through all that it has merged for each more."""
    while len(rles) > 1:
        rles = [coco_mask.merge(rles[at : at + 16]) for at in range(0, len(rles), 16)]
    return rles[0]


def to_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Convert any COCO segmentation to a mask (height, width) uint8 of 0 and 1; errors as in `to_rle`."""
    return coco_mask.decode(to_rle(segmentation, height, width))


def to_region(
    segmentation: Any, height: int, width: int, window: tuple[int, int, int, int]
) -> tuple[np.ndarray, int, int]:
    """The part of `to_mask` inside a window, without computing the rest.

    Args:
        segmentation, height, width: As in `to_rle`.
        window: x1, y1, x2, y2 in pixels of the image.

    Returns:
        A region with all set pixels, uint8 (h, w) of 0 and 1, possibly empty; x, y of its first pixel.

    Raises:
        ValueError: as in `to_rle`.
    """
    x1, y1, x2, y2 = (
        max(window[0], 0), max(window[1], 0), min(window[2], width), min(window[3], height)
    )  # fmt: skip
    check_size(height, width)
    if isinstance(segmentation, dict):
        rle = _rle_of_image(segmentation, height, width)
        left, top, wide, high = (int(side) for side in coco_mask.toBbox(rle))
        x1, y1, x2, y2 = max(x1, left), max(y1, top), min(x2, left + wide), min(y2, top + high)
        if x1 >= x2 or y1 >= y2:
            return np.zeros((0, 0), np.uint8), 0, 0
        return coco_mask.decode(rle)[y1:y2, x1:x2], x1, y1
    polygons = checked_polygons(segmentation, height, width)
    if not polygons:
        return np.zeros((0, 0), np.uint8), 0, 0
    flat = np.concatenate([np.asarray(polygon, np.float64) for polygon in polygons])
    (left, top), (right, bottom) = flat.reshape(-1, 2).min(0).tolist(), flat.reshape(-1, 2).max(0).tolist()
    x1, y1 = max(x1, math.floor(left) - 1), max(y1, math.floor(top) - 1)
    x2, y2 = min(x2, math.ceil(right) + 1), min(y2, math.ceil(bottom) + 1)
    if x1 >= x2 or y1 >= y2:
        return np.zeros((0, 0), np.uint8), 0, 0
    # pycocotools rounds to a fifth of a pixel, towards zero. The shift changes signs, so round before it, and
    # pass values that round to the same fifths again.
    fifths = np.trunc(5 * flat + 0.5).reshape(-1, 2) - np.array([5.0 * x1, 5.0 * y1])
    shifted = ((fifths - 0.9 * (fifths < 0)) / 5).reshape(-1).tolist()
    ends = list(accumulate(map(len, polygons)))
    moved = [shifted[end - len(polygon) : end] for polygon, end in zip(polygons, ends, strict=True)]
    rles = coco_mask.frPyObjects(moved, y2 - y1, x2 - x1)
    return coco_mask.decode(_union(rles)), x1, y1


def check_size(height: int, width: int) -> None:
    """Raise a ValueError if an image or mask is larger than allowed."""
    if max(height, width) > limit("side"):
        raise ValueError(f"a size of {width} x {height} pixels: a side has more than {beyond('side')}")
    # pycocotools computes with the number of pixels in 31 bits.
    if height * width > min(limit("pixels"), 2**31 - 1):
        raise ValueError(f"a size of {width} x {height} pixels is more than {beyond('pixels')}")


def checked_polygons(segmentation: Any, height: int = 0, width: int = 0) -> list[Any]:
    """The polygons of a segmentation with three or more points, each a flat list or array of finite numbers.

    Args:
        segmentation: As in `to_rle`.
        height, width: Of the image; 0 if unknown.

    Raises:
        ValueError: it is not a list of polygons, or they reach too far or are too long.
    """
    side = max(height, width)
    farthest = min(max(_FAR_SIDES * side, FAR), FARTHEST) if side else FARTHEST
    bound = 0.0
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation is a {type(segmentation).__name__}, not polygons or RLE")
    if segmentation and not any(isinstance(polygon, (list, array)) for polygon in segmentation):
        raise ValueError("polygons must be lists of numbers inside a list: [[x, y, x, y, ...], ...]")
    if is_pairs(segmentation):
        raise ValueError(f"the segmentation is a list of pairs [x, y]; expected {POLYGONS}")
    for polygon in segmentation:
        if isinstance(polygon, array):
            bound += len(polygon) * check_polygon(polygon, farthest)
            continue
        if not isinstance(polygon, list):
            raise ValueError("polygons must be lists of numbers inside a list: [[x, y, x, y, ...], ...]")
        # Types first: there are few, whatever the number of points.
        kinds = set(map(type, polygon))
        if list in kinds:
            raise ValueError(f"a polygon is a list of pairs [x, y]; expected {POLYGONS}")
        if not all(issubclass(kind, (int, float)) for kind in kinds):
            raise ValueError("a polygon holds something that is not a finite number")
        bound += len(polygon) * check_polygon(polygon, farthest)
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if bound > limit("outline"):
        _check_outlines(polygons)
    return polygons


def _check_outlines(polygons: Sequence[Any]) -> None:
    """Raise a ValueError if polygons together are longer than allowed."""
    length, most = 0.0, limit("outline")
    for polygon in polygons:
        points = np.asarray(polygon, np.float64).reshape(-1, 2)
        length += np.abs(points - np.roll(points, 1, axis=0)).max(1, initial=0).sum() + len(points)
        if length > most:
            raise ValueError(f"the outlines are longer than {beyond('outline')}")


def check_polygon(polygon: Any, most: float = FARTHEST) -> float:
    """How far from 0 a polygon reaches, in pixels.

    Args:
        polygon: A flat list or array of numbers.
        most: How far it may reach.

    Raises:
        ValueError: it is no polygon, or reaches too far.
    """
    try:
        farthest = float(np.abs(np.asarray(polygon, np.float64)).max(initial=0))
    except OverflowError:
        farthest = math.inf
    if not math.isfinite(farthest):
        raise ValueError("a polygon holds something that is not a finite number")
    if len(polygon) % 2:
        raise ValueError(f"a polygon has an odd number of coordinates ({len(polygon)})")
    if farthest > most:
        where = "any image" if most == FARTHEST else f"its image; allowed: {most:,.0f} pixels from 0"
        raise ValueError(f"a polygon reaches {float(max(polygon, key=abs)):g}, far out of {where}")
    return farthest


def is_pairs(segmentation: list[Any]) -> bool:
    """Whether a segmentation is one polygon as a list of three or more pairs [x, y]."""
    return len(segmentation) > 2 and all(isinstance(p, (list, array)) and len(p) == 2 for p in segmentation)


def rle_totals(counts: Sequence[bytes]) -> np.ndarray:
    """How many pixels each of n compressed RLEs covers in all, (n,) int64; -1 for one that is damaged.

    The sums of `rle_counts`, for many at once. One with more runs than pixels counts as damaged.
    """
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    if not lengths.all() or not len(counts):
        totals = np.zeros(len(counts), np.int64)
        if lengths.any():
            totals[lengths > 0] = rle_totals([each for each in counts if each])
        return totals
    codes = np.frombuffer(b"".join(counts), np.uint8).astype(np.int64) - 48
    ends = np.cumsum(lengths)
    last = np.flatnonzero((codes & 0x20) == 0)  # of each number
    damaged = (codes[ends - 1] & 0x20) != 0
    damaged |= np.maximum.reduceat((codes < 0) | (codes > 63), ends - lengths)
    if damaged.any():
        totals = np.full(len(counts), -1, np.int64)
        sound = np.flatnonzero(~damaged)
        if len(sound):
            totals[sound] = rle_totals([counts[row] for row in sound.tolist()])
        return totals
    first = np.concatenate([[0], last[:-1] + 1])
    position = np.arange(codes.size) - np.repeat(first, last - first + 1)
    owner = np.searchsorted(ends, last, "right")  # the RLE of each number
    starts = np.searchsorted(owner, np.arange(len(counts)))
    values = np.add.reduceat((codes & 0x1F) << (5 * np.minimum(position, 6)), first)
    negative = (codes[last] & 0x10) != 0
    values = np.where(negative, values - (np.int64(1) << (5 * np.minimum(last - first + 1, 7))), values)
    wrong = last - first > np.where(negative, 5, 6)
    values[wrong] = 0
    # The number 0, those at odd places and those at even places are sums of their own.
    place = np.arange(len(values)) - starts[owner]
    group = 3 * owner + np.where(place == 0, 0, 1 + (place + 1) % 2)
    order = np.argsort(group, kind="stable")
    sums = np.cumsum(values[order])
    heads = np.flatnonzero(np.diff(group[order], prepend=-1))
    before = np.concatenate([[0], sums])[heads]
    runs = sums - np.repeat(before, np.diff(heads, append=len(sums)))
    bad = np.logical_or.reduceat(wrong[order] | (runs < 0) | (runs >= 2**32), starts)
    totals = np.add.reduceat(runs, starts)
    totals[bad | (np.diff(starts, append=len(values)) > totals + 1)] = -1
    return totals


def checked_rle(segmentation: dict[str, Any]) -> dict[str, Any]:
    """An RLE, checked, as compressed RLE with `counts` in bytes.

    Raises:
        ValueError: it is damaged.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise ValueError(f"RLE needs a size [height, width], not {shown(size)}")
    check_size(*size)
    runs = rle_counts(counts)
    total = int(runs.sum())
    if total != size[0] * size[1]:
        raise ValueError(f"RLE covers {total} pixels, but its size {size} has {size[0] * size[1]}")
    if len(runs) > total + 1:
        raise ValueError(f"RLE has {len(runs)} runs, more than its {total} pixels")
    if isinstance(counts, list):
        return runs_to_rle(counts, *size)
    return {"size": size, "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _rle_of_image(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """`checked_rle` of an image of `height` x `width` pixels."""
    rle = checked_rle(segmentation)
    if rle["size"] != [height, width]:
        raise ValueError(f"the RLE has size {rle['size']}, the image {[height, width]} (height, width)")
    return rle
