"""COCO run-length encoding (RLE), read without decoding the mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from yolact_runtime.masks import Region
from yolact_runtime.untrusted import beyond, limit


def rle_counts(counts: Any) -> np.ndarray:
    """The runs (n,) int64, background first, of an RLE's `counts`, compressed or not.

    Raises:
        ValueError: they cannot be read.
    """
    if not isinstance(counts, (list, str, bytes)):
        raise ValueError(f"counts is a {type(counts).__name__}, not a list or a string")
    if len(counts) > limit("rle"):
        raise ValueError(f"the RLE has {len(counts):,} numbers or characters, more than {beyond('rle')}")
    if isinstance(counts, list):
        if not all(type(count) is int and 0 <= count < 2**32 for count in counts):
            raise ValueError("RLE counts must be whole numbers, 0 or more, of at most 32 bits")
        return np.array(counts, np.int64)
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    # Each character has five bits, and a sixth if more follow; the top bit of the last five is the sign.
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    last = np.flatnonzero((codes & 0x20) == 0)
    if codes.min() < 0 or codes.max() > 63 or last.size == 0 or last[-1] != codes.size - 1:
        raise ValueError("compressed RLE is damaged")
    first = np.concatenate([[0], last[:-1] + 1])
    position = np.arange(codes.size) - np.repeat(first, last - first + 1)
    # pycocotools shifts by 5 bits for each character in 32 bits, and fills negative ones after the last.
    if position.max() > 6 or ((last - first == 6) & ((codes[last] & 0x10) != 0)).any():
        raise ValueError("compressed RLE is damaged")
    values = np.add.reduceat((codes & 0x1F) << (5 * position), first)
    values = np.where(codes[last] & 0x10, values - (np.int64(1) << (5 * (last - first + 1))), values)
    # From the fourth on, each is stored as the difference from the one two before it.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0 or values.max() >= 2**32:
        raise ValueError("compressed RLE is damaged")
    return values


def region_of(rle: dict[str, Any]) -> Region:
    """The mask of an RLE `{"size": [height, width], "counts"}`, in the smallest rectangle around it.

    Raises:
        ValueError: it cannot be read, or its runs do not add up to the image.
    """
    height, width = rle["size"]
    bounds = np.cumsum(rle_counts(rle["counts"]))
    if not len(bounds) or bounds[-1] != height * width:
        raise ValueError(f"the runs of the RLE do not add up to {height} x {width} pixels")
    bounds = bounds[: len(bounds) // 2 * 2]  # an unset run at the end has no edges
    edges, times = np.unique(bounds, return_counts=True)
    return tight(edges[times % 2 == 1], height)  # an empty run begins and ends at the same pixel


def tight(edges: np.ndarray, height: int) -> Region:
    """The mask with these edges in an image of `height` rows, in the smallest rectangle around it."""
    if not len(edges):
        return Region(0, 0, 0, 0, height, edges)
    starts, lasts = edges[0::2], edges[1::2] - 1
    left, right = int(starts[0]) // height, int(lasts[-1]) // height
    top, bottom = int((starts % height).min()), int((lasts % height).max())
    if (starts // height != lasts // height).any():  # a run goes on at the top of the next column
        top, bottom = 0, height - 1
    return Region(left, top, right - left + 1, bottom - top + 1, height, edges)


def inner_bounds(region: Region) -> np.ndarray:
    """Where the runs of a mask end inside its rectangle, unset ones first, counted down its columns.

    Returns:
        (runs,) int64; the last is the number of pixels of the rectangle.
    """
    starts, lasts = region.edges[0::2], region.edges[1::2] - 1
    ends = []
    for pixels, after in ((starts, 0), (lasts, 1)):
        column, row = np.divmod(pixels, region.image_height)
        ends.append((column - region.x) * region.height + row - region.y + after)
    # In a rectangle that is lower than the image, a run may touch the one at the top of the next column.
    bounds, times = np.unique(np.concatenate(ends), return_counts=True)
    bounds = bounds[times == 1]
    size = region.width * region.height
    return bounds if bounds[-1] == size else np.append(bounds, size)
