"""Arithmetic of masks as the edges of their runs: areas, unions, and masks of a tile in its image.

The cost depends on the number of runs, about one for each column of a mask, not on the pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolact_runtime.masks import Region


def area(region: Region) -> int:
    """Number of pixels of a mask."""
    return int((region.edges[1::2] - region.edges[0::2]).sum())


def area_within(region: Region, window: Sequence[int]) -> int:
    """Number of pixels of a mask inside a window (left, top, column past the last, row past the last)."""
    left, top, right, bottom = window
    within = left <= region.x and region.x + region.width <= right
    if within and top <= region.y and region.y + region.height <= bottom:
        return area(region)
    column, start, stop = _column_runs(region)
    inside = (left <= column) & (column < right)
    return int((np.minimum(stop, bottom) - np.maximum(start, top))[inside].clip(0).sum())


def shared_area(first: Region, second: Region) -> int:
    """Number of pixels that two masks of the same image have in common."""
    return area(first) + area(second) - area(union([first, second]))


def union(regions: Sequence[Region]) -> Region:
    """The pixels of any of some masks, at least one, of the same image."""
    starts = np.concatenate([region.edges[0::2] for region in regions])
    stops = np.concatenate([region.edges[1::2] for region in regions])
    order = np.argsort(starts, kind="stable")
    edges = _join(starts[order], np.maximum.accumulate(stops[order]))
    some = [region for region in regions if len(region.edges)] or regions[:1]
    x, y = min(region.x for region in some), min(region.y for region in some)
    width = max(region.x + region.width for region in some) - x
    height = max(region.y + region.height for region in some) - y
    return Region(x, y, width, height, regions[0].image_height, edges)


def move(region: Region, x: int, y: int, height: int) -> Region:
    """The mask of a tile in the image that the tile was cut from.

    Args:
        region: The mask in the tile.
        x, y: Where the tile's first pixel is in the image.
        height: Rows of the image.
    """
    if not len(region.edges):
        return Region(0, 0, 0, 0, height, region.edges)
    column, start, stop = _column_runs(region)
    column, start, stop = column + x, start + y, stop + y
    left, top = int(column[0]), int(start.min())
    width, rows = int(column[-1]) + 1 - left, int(stop.max()) - top
    return Region(left, top, width, rows, height, _join(column * height + start, column * height + stop))


def _column_runs(region: Region) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each run cut at the bottom of its column: column, first row and row past the last, int64."""
    height = region.image_height
    starts, stops = region.edges[0::2], region.edges[1::2]
    first = starts // height
    counts = (stops - 1) // height - first + 1
    run = np.repeat(np.arange(len(starts)), counts)
    column = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
    top = column * height
    return column, np.maximum(starts[run] - top, 0), np.minimum(stops[run] - top, height)


def _join(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The edges of runs in ascending order; those that touch or overlap become one."""
    apart = np.ones(len(starts) + 1, bool)
    apart[1:-1] = starts[1:] > stops[:-1]
    if not len(starts):
        return np.empty(0, np.int64)
    edges = np.empty(2 * np.count_nonzero(apart[:-1]), np.int64)
    edges[0::2], edges[1::2] = starts[apart[:-1]], stops[apart[1:]]
    return edges
