"""Mask targets at the sizes that the loss needs, computed directly from COCO segmentations.

The original rasterises at image size, resizes to the input as `cv2.resize` does with 0 and 1, shrinks
bilinearly to the target's size and binarises. The last step reads four pixels of the input-sized mask for
each of its own. Only these are computed here, where the instance is: the same bits in less time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import cv2
import numpy as np

from yolact.data.geometry import Geometry
from yolact_runtime.metadata import InputSize, height_width

# 1.0 in the fixed-point weights of cv2.resize for bytes.
_ONE = 2048


@dataclass(frozen=True)
class _Axis:
    """How the n pixels of a target depend on those of the rotated crop, along one axis.

    A target pixel blends two input pixels, and each of these blends two pixels of the crop.

    Attributes:
        reads: (4, n) int64, pixels of the crop: two before, two after for each; not decreasing along n.
        weights: (2, 2, n) int32, their fixed-point weights.
        blend: (2, n) float32, weights of the two input pixels.
    """

    reads: np.ndarray
    weights: np.ndarray
    blend: np.ndarray

    def affected(self, starts: np.ndarray, ends: np.ndarray) -> tuple[list[int], list[int]]:
        """The target pixels, first and past the last, that read any pixel from starts to ends (exclusive)."""
        first = np.searchsorted(self.reads[3], starts, "left")
        last = np.searchsorted(self.reads[0], ends, "left")
        return first.tolist(), last.tolist()


@lru_cache(maxsize=16)
def _shrink(size: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that F.interpolate reads when it shrinks `size` pixels to each of `sizes` (N together).

    Returns:
        The pixels before and after (2, N) int64, and their weights (2, N) float32.
    """
    at = np.concatenate(
        [
            (np.arange(n, dtype=np.float32) + np.float32(0.5)) * np.float32(size / n) - np.float32(0.5)
            for n in sizes
        ]
    )
    at = np.maximum(at, np.float32(0))
    before = np.minimum(at.astype(np.int64), size - 1)
    after = np.minimum(before + 1, size - 1)
    across = at - before.astype(np.float32)
    return np.stack([before, after]), np.stack([1 - across, across])


def _axes(length: int, size: int, sizes: tuple[int, ...], rows: bool) -> list[_Axis]:
    """The axis from `length` rows or columns of the crop, through `size` input pixels, to each of `sizes`."""
    pixels, blend = _shrink(size, sizes)
    at = ((pixels + 0.5) * (length / size) - 0.5).astype(np.float32)
    before = np.floor(at).astype(np.int64)
    across = at - before.astype(np.float32)
    if not rows:
        # At the edge cv2.resize takes the outermost column alone, but blends the outermost row with itself.
        across[(before < 0) | (before >= length - 1)] = 0
    after = np.minimum(np.maximum(before + 1, 0), length - 1)
    before = np.minimum(np.maximum(before, 0), length - 1)
    weights = np.rint(np.stack([1 - across, across]) * np.float32(_ONE)).astype(np.int32)
    reads = np.concatenate([before, after])
    axes = []
    for n, end in zip(sizes, accumulate(sizes), strict=True):
        own = slice(end - n, end)
        axes.append(_Axis(reads[:, own], weights[:, :, own], blend[:, own]))
    return axes


class MaskSampler:
    """Computes the mask targets of one image.

    Args:
        geometry: From the image to the input.
        size: Of the input in pixels: S, the side of a square, or (H, W).
        shapes: (height, width) of each kind of target.
    """

    def __init__(self, geometry: Geometry, size: InputSize, shapes: Sequence[tuple[int, int]]) -> None:
        self._geometry = geometry
        self._shapes = list(shapes)
        heights, widths = zip(*self._shapes, strict=True)
        wide, high = geometry.turned_sides
        height, width = height_width(size)
        self._rows = _axes(high, height, heights, rows=True)
        self._columns = _axes(wide, width, widths, rows=False)

    def __call__(self, regions: Sequence[tuple[np.ndarray, int, int]]) -> list[np.ndarray]:
        """The targets of G instances.

        Args:
            regions: For each instance its mask, uint8 (h, w) of 0 and 1, and the x and y of its first pixel
                in the image; the rest is background.

        Returns:
            For each shape the masks (G, height, width) bool.
        """
        targets = [np.zeros((len(regions), *shape), bool) for shape in self._shapes]
        if regions:
            # Rotate, then resize, as in the original: cv2.resize rounds differently along x and y.
            regions = [self._geometry.turn_region(*region) for region in regions]
            corners = np.array([[x, y, x + region.shape[1], y + region.shape[0]] for region, x, y in regions])
            # Columns first, as pycocotools' arrays are in memory; with a border of background.
            padded = [_padded(region.T) for region, _, _ in regions]
            for target, rows, columns in zip(targets, self._rows, self._columns, strict=True):
                bounds = *columns.affected(*corners.T[::2]), *rows.affected(*corners.T[1::2])
                for index, (i1, i2, j1, j2) in enumerate(zip(*bounds, strict=True)):
                    if i1 < i2 and j1 < j2 and padded[index].size:
                        x, y = corners[index, :2] - 1
                        reads = columns.reads[:, i1:i2] - x, rows.reads[:, j1:j2] - y
                        weights = columns.weights[:, :, i1:i2], rows.weights[:, :, j1:j2]
                        blends = columns.blend[:, i1:i2], rows.blend[:, j1:j2]
                        target[index, j1:j2, i1:i2] = _sample(padded[index], reads, weights, blends)
        return targets


def _padded(region: np.ndarray) -> np.ndarray:
    """The region (h, w) with a border of zeros; an empty one as it is."""
    if not region.size:
        return region
    padded = np.zeros((region.shape[0] + 2, region.shape[1] + 2), np.uint8)
    padded[1:-1, 1:-1] = region
    return padded


def _sample(
    region: np.ndarray,
    reads: tuple[np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray],
    blends: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """The target (j, i) bool of a region (width, height) whose border of zeros continues without end.

    The tuples are columns of an `_Axis` along x and y; `reads` are relative to the region's first pixel.
    """
    i, j = reads[0].shape[1], reads[1].shape[1]
    near = cv2.transpose(region.take(reads[0].reshape(-1), 0, mode="clip"))  # (h, 4 i)
    near = near.take(reads[1].reshape(-1), 0, mode="clip").reshape(4 * j, 2, 2 * i)
    # The products and shifts of cv2.resize for bytes: its rounding decides at the border of a mask.
    across, down = weights[0].reshape(2, -1), weights[1][..., None]  # (2, 2 i), (2, 2, j, 1)
    lines = near[:, 0] * across[0]
    lines += near[:, 1] * across[1]
    lines >>= 4
    lines = lines.reshape(2, 2, j, 2 * i)
    lines *= down
    lines >>= 16
    full = (lines[0] + lines[1] >= 2).reshape(2, j, 2, i)
    # F.interpolate: along x, then along y.
    flat = full[:, :, 0] * blends[0][0]
    flat += full[:, :, 1] * blends[0][1]  # (2, j, i)
    flat *= blends[1][..., None]
    return flat[0] + flat[1] > 0.5
