"""Masks at image size, computed from their outlines.

A mask is sigmoid(prototypes . coefficients), cropped to its box at prototype resolution, resized to the image
(bilinear, half-pixel centres) and thresholded at 0.5 (YOLACT, Sec. 3.3). `mask_edges` finds the outlines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from yolact_runtime.errors import YolactError
from yolact_runtime.mask_edges import find_edges, sigmoid


class Region(NamedTuple):
    """The mask of one instance in an image.

    Attributes:
        x: Left column of the mask's bounding rectangle, in pixels.
        y: Its top row.
        width: Its width; 0 for an empty mask.
        height: Its height; 0 for an empty mask.
        image_height: Rows of the image.
        edges: (2 * runs,) int64, alternately the first pixel of a run and the one past its last, counted down
            the columns of the whole image; strictly ascending.
    """

    x: int
    y: int
    width: int
    height: int
    image_height: int
    edges: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(height, width) bool: the mask inside the rectangle, computed at each call."""
        steps = np.zeros(self.width * self.height + 1, np.int8)
        steps[self._index(self.edges[0::2])] += 1
        # A run may end at the bottom of a column, so its last pixel determines the column.
        steps[self._index(self.edges[1::2] - 1) + 1] -= 1
        return np.cumsum(steps[:-1], dtype=np.int8).view(bool).reshape(self.width, self.height).T

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the rectangle, to index the image with."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    def _index(self, pixels: np.ndarray) -> np.ndarray:
        column, row = np.divmod(pixels, self.image_height)
        return (column - self.x) * self.height + row - self.y


def crop_bounds(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The prototype cells that cropping keeps: those inside a box, widened by one cell.

    Args:
        boxes: (n, 4) x1 y1 x2 y2 relative to the image, corners in any order, inside it or not.
        height: Rows of the prototypes.
        width: Columns of the prototypes.

    Returns:
        (n, 4) int64: first column, first row, column past the last, row past the last; within the
        prototypes. For a box outside the image the last is not greater than the first.
    """
    size = np.array([width, height], np.float32)
    with np.errstate(over="ignore"):
        corners = np.asarray(boxes, np.float32).reshape(-1, 2, 2) * size  # (n, corner, xy)
    low = corners.min(axis=1) - 1
    high = corners.max(axis=1) + 1
    # Cell c is kept if low <= c < high, so both bounds round up.
    bounds = np.concatenate([np.clip(low, 0, size), np.clip(high, 0, size)], axis=1)
    return np.ceil(bounds).astype(np.int64)


def assemble(coefficients: np.ndarray, prototypes: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Masks at prototype resolution.

    Args:
        coefficients: (n, M).
        prototypes: (Hp, Wp, M).
        boxes: (n, 4) relative x1 y1 x2 y2.

    Returns:
        (n, Hp, Wp) float32 in 0..1, zero outside the boxes.
    """
    height, width = prototypes.shape[:2]
    out = np.zeros((len(coefficients), height, width), np.float32)
    for target, row, bounds in zip(
        out, coefficients, crop_bounds(boxes, height, width).tolist(), strict=True
    ):
        x0, y0, x1, y1 = bounds
        if x1 > x0 and y1 > y0:
            with np.errstate(over="ignore"):
                target[y0:y1, x0:x1] = sigmoid(prototypes[y0:y1, x0:x1] @ row)
    return out


def box_masks(
    coefficients: np.ndarray, prototypes: np.ndarray, boxes: np.ndarray, height: int, width: int
) -> list[Region]:
    """Masks at image size.

    Args:
        coefficients: (n, M) float32.
        prototypes: (Hp, Wp, M) float32.
        boxes: (n, 4) float32, relative x1 y1 x2 y2.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Returns:
        n regions.
    """
    bounds = crop_bounds(boxes, *prototypes.shape[:2])
    return [
        Region(x, y, columns, rows, height, edges)
        for found in find_edges(coefficients, prototypes, bounds, height, width)
        for (x, y, columns, rows), edges in zip(found.rectangles.tolist(), found.edges, strict=True)
    ]


def full_masks(regions: Sequence[Region], height: int, width: int) -> np.ndarray:
    """(n, height, width) bool from regions of an image of that size."""
    out = np.zeros((len(regions), height, width), bool)
    for target, region in zip(out, regions, strict=True):
        target[region.window] = region.mask
    return out


def label_map(regions: Sequence[Region], height: int, width: int) -> np.ndarray:
    """Number of the instance that each pixel belongs to: 0 for none, else its place in `regions` plus 1.

    Where masks overlap, the first one wins.

    Returns:
        (height, width) uint8; uint16 for more than 255 regions.

    Raises:
        YolactError: more than 65,535 regions.
    """
    if len(regions) > np.iinfo(np.uint16).max:
        raise YolactError(f"a label map has 16 bits, for 65,535 instances; there are {len(regions):,}")
    out = np.zeros((height, width), np.uint8 if len(regions) <= np.iinfo(np.uint8).max else np.uint16)
    for index in range(len(regions) - 1, -1, -1):
        np.copyto(out[regions[index].window], index + 1, where=regions[index].mask)
    return out


def cutout(image: np.ndarray, region: Region) -> np.ndarray:
    """The smallest rectangle of an image that holds a mask, with the mask as alpha.

    Args:
        image: (H, W, 3) uint8 BGR.
        region: The mask.

    Returns:
        (h, w, 4) uint8 BGRA, alpha 255 in the mask and 0 outside; (0, 0, 4) for an empty mask.
    """
    if not len(region.edges):
        return np.zeros((0, 0, 4), np.uint8)
    mask = np.ascontiguousarray(region.mask).view(np.uint8)
    x, y, width, height = cv2.boundingRect(mask)
    inner = slice(y, y + height), slice(x, x + width)
    return np.dstack([image[region.window][inner], mask[inner] * np.uint8(255)])


def areas(regions: Sequence[Region]) -> np.ndarray:
    """(n,) int64: pixels of each mask."""
    if not regions:
        return np.zeros(0, np.int64)
    edges = np.concatenate([region.edges for region in regions])
    pixels = np.concatenate([[0], np.cumsum(edges[1::2] - edges[0::2])])
    ends = np.cumsum([len(region.edges) // 2 for region in regions])
    found = pixels[ends]  # up to the end of each
    found[1:] -= found[:-1].copy()
    return found


def centroids(regions: Sequence[Region]) -> np.ndarray:
    """(n, 2) float64: mean x and y of each mask in pixels, where those of the first pixel are 0.5.

    NaN for an empty mask.
    """
    sums = np.array([_sums(one.edges, one.image_height) for one in regions], np.float64).reshape(-1, 3)
    pixels = np.where(sums[:, :1] > 0, sums[:, :1], np.nan)  # (n, 1)
    return sums[:, 1:] / pixels + 0.5


def _sums(edges: np.ndarray, height: int) -> tuple[int, int, int]:
    """Pixels of a mask, and the sums of their columns and rows."""
    column, row = np.divmod(edges, height)
    # Of all pixels before each edge: whole columns, and the beginning of one.
    columns = height * (column * (column - 1) // 2) + row * column
    rows = column * (height * (height - 1) // 2) + row * (row - 1) // 2
    total = [int((values[1::2] - values[0::2]).sum()) for values in (edges, columns, rows)]
    return total[0], total[1], total[2]


def encode(regions: Sequence[Region], height: int, width: int) -> list[dict[str, Any]]:
    """COCO RLE, byte for byte as pycocotools encodes the full masks, without computing these.

    Returns:
        {"size": [height, width], "counts": str} for each region.
    """
    if not regions:
        return []
    runs = [{"size": [height, width], "counts": counts} for counts in _counts(regions, height * width)]
    packed = coco_mask.frPyObjects(runs, height, width)
    return [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in packed]


def packed_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A mask of a COCO file, compressed RLE or polygons, as pycocotools computes with it."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return {"size": segmentation["size"], "counts": segmentation["counts"].encode()}


def _counts(regions: Sequence[Region], pixels: int) -> list[np.ndarray]:
    """Lengths of the alternating unset and set runs of each region, unset first, as uint32."""
    ends = np.cumsum([len(region.edges) + 1 for region in regions])  # each with the end of the image
    end = np.array([pixels])
    bounds = np.concatenate([one for region in regions for one in (region.edges, end)])
    lengths = np.empty(len(bounds), np.int64)
    lengths[0] = bounds[0]
    np.subtract(bounds[1:], bounds[:-1], out=lengths[1:])
    lengths[ends[:-1]] += pixels  # the next region begins at 0 again
    lengths = lengths.astype(np.uint32)
    stops = ends - (lengths[ends - 1] == 0)  # no unset run follows a mask that is set to the end
    starts = [0, *ends[:-1].tolist()]
    return [lengths[start:stop] for start, stop in zip(starts, stops.tolist(), strict=True)]


def polygons(region: Region) -> list[list[float]]:
    """Polygons of a mask along pixel borders: one flat [x, y, x, y, ...] for each connected component.

    COCO polygons have no holes, so holes are filled. An empty mask has no polygon.
    """
    if not len(region.edges):
        return []
    # OpenCV's contours run through pixel centres. At double size, a left border has an even coordinate and
    # a right one an odd coordinate, so that (c + 1) // 2 is the border between the original pixels.
    double = np.repeat(np.repeat(region.mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = []
    for contour in contours:
        points = (contour.reshape(-1, 2) + 1) // 2 + (region.x, region.y)  # (points, xy)
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        if len(points) >= 3:
            outlines.append(points.astype(float).ravel().tolist())
    return outlines
