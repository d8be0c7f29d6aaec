"""Mask targets at the sizes the loss needs, straight from COCO segmentations.

The rule of the original: rasterise at image size, resize to the input as `cv2.resize` does with 0 and 1,
shrink bilinearly to the target and binarise. The last step reads four pixels of the input-sized mask for each
of its own, so only these are made, of the part of the image that an instance covers: the same bits, sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import cv2
import numpy as np

from yolact.data.geometry import Geometry

# Fixed-point weights of cv2.resize for bytes.
_ONE = 2048


@dataclass(frozen=True)
class _Axis:
    """How the pixels of a target (n of them) come from those of the turned crop, along one axis.

    Of the 2n rows, the first n are the input pixel before, the others the one after.

    Attributes:
        reads: (4, n) int64, pixels of the crop: the two before, then the two after; not decreasing along n.
        weights: (2, 2, n) int32, their weights, `_ONE` together.
        blend: (2, n) float32, weights of the two input pixels.
    """

    reads: np.ndarray
    weights: np.ndarray
    blend: np.ndarray

    def parts(self, starts: np.ndarray, ends: np.ndarray) -> tuple[list[int], list[int]]:
        """First and past-the-last target pixels that read any pixel from starts to ends (exclusive)."""
        first = np.searchsorted(self.reads[3], starts, "left")
        last = np.searchsorted(self.reads[0], ends, "left")
        return first.tolist(), last.tolist()


@lru_cache(maxsize=16)
def _shrink(size: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What F.interpolate reads of `size` pixels to make `sizes`, one after the other (N together).

    Returns:
        The input pixels (2, N) int64 before and after, and their weights (2, N) float32.
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
    """From the `length` rows or columns of the crop, by `size` input pixels, to each of `sizes`."""
    pixels, blend = _shrink(size, sizes)
    at = ((pixels + 0.5) * (length / size) - 0.5).astype(np.float32)
    before = np.floor(at).astype(np.int64)
    across = at - before.astype(np.float32)
    if not rows:
        # Beyond the outermost column cv2.resize takes it alone; beyond a row it blends that with itself.
        across[(before < 0) | (before >= length - 1)] = 0
    after = np.minimum(np.maximum(before + 1, 0), length - 1)
    before = np.minimum(np.maximum(before, 0), length - 1)
    weights = np.rint(np.stack([1 - across, across]) * np.float32(_ONE)).astype(np.int32)
    reads = np.concatenate([before, after])
    axes = []
    for n, end in zip(sizes, accumulate(sizes), strict=True):
        part = slice(end - n, end)
        axes.append(_Axis(reads[:, part], weights[:, :, part], blend[:, part]))
    return axes


class MaskSampler:
    """Makes the masks of one image.

    Args:
        geometry: from the image to the input.
        size: S, pixels of the input.
        shapes: (height, width) of each kind of target.
    """

    def __init__(self, geometry: Geometry, size: int, shapes: Sequence[tuple[int, int]]) -> None:
        self._geometry = geometry
        self._shapes = list(shapes)
        heights, widths = zip(*self._shapes, strict=True)
        wide, high = geometry.turned_sides
        self._rows = _axes(high, size, heights, rows=True)
        self._columns = _axes(wide, size, widths, rows=False)

    def __call__(self, regions: Sequence[tuple[np.ndarray, int, int]]) -> list[np.ndarray]:
        """Targets of instances.

        Args:
            regions: for each of G instances its mask, uint8 (h, w) of 0 and 1, and the x and y in the image
                of its first pixel; background elsewhere.

        Returns:
            For each shape the masks, bool (G, height, width).
        """
        targets = [np.zeros((len(regions), *shape), bool) for shape in self._shapes]
        if regions:
            # Turned first and resized then, as in the original: the roundings of cv2.resize have a direction.
            regions = [self._geometry.turn_region(*region) for region in regions]
            corners = np.array([[x, y, x + region.shape[1], y + region.shape[0]] for region, x, y in regions])
            # Columns first, as the arrays of pycocotools lie in memory; a border of background around.
            padded = [_padded(region.T) for region, _, _ in regions]
            for target, rows, columns in zip(targets, self._rows, self._columns, strict=True):
                bounds = *columns.parts(*corners.T[::2]), *rows.parts(*corners.T[1::2])
                for index, (i1, i2, j1, j2) in enumerate(zip(*bounds, strict=True)):
                    if i1 < i2 and j1 < j2 and padded[index].size:
                        x, y = corners[index, :2] - 1
                        reads = columns.reads[:, i1:i2] - x, rows.reads[:, j1:j2] - y
                        weights = columns.weights[:, :, i1:i2], rows.weights[:, :, j1:j2]
                        blends = columns.blend[:, i1:i2], rows.blend[:, j1:j2]
                        target[index, j1:j2, i1:i2] = _sample(padded[index], reads, weights, blends)
        return targets


def _padded(region: np.ndarray) -> np.ndarray:
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
    """What a target (j, i) sees of a region (width, height) with a border of zeros, which reaches on and on.

    The tuples are parts of an `_Axis` along x and y; `reads` count from the region's first pixel.
    """
    i, j = reads[0].shape[1], reads[1].shape[1]
    near = cv2.transpose(region.take(reads[0].reshape(-1), 0, mode="clip"))  # (h, 4 i)
    near = near.take(reads[1].reshape(-1), 0, mode="clip").reshape(4 * j, 2, 2 * i)
    # cv2.resize for bytes: products and shifts as there, for its roundings decide at the border.
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
