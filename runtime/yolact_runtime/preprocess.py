"""Resizing of images to the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from yolact_runtime.metadata import InputSize, height_width


def resize_batch(images: Sequence[np.ndarray], size: InputSize, dtype: str = "uint8") -> np.ndarray:
    """Resize each image to the network's input, without keeping its aspect ratio.

    Bilinear with half-pixel centres and no antialiasing, as in the evaluation of the published models.

    Args:
        images: Each (H, W, 3) uint8.
        size: Of the result in pixels: S, the side of a square, or (S_h, S_w).
        dtype: "float32" is exact to float32 rounding; "uint8" rounds to integers (off by at most 1) and is
            many times faster.

    Returns:
        (n, S_h, S_w, 3) of `dtype`, 0..255.
    """
    height, width = height_width(size)
    batch = np.empty((len(images), height, width, 3), dtype)
    for target, image in zip(batch, images, strict=True):
        if batch.dtype == np.uint8:
            cv2.resize(image, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
        else:
            _bilinear(image, target)
    return batch


@lru_cache(maxsize=64)
def bilinear_axis(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bilinear interpolation of an axis from `source` to `target` pixels (half-pixel centres).

    Returns:
        Indices of the pixels before and after, (target,) int64, and the float32 weight of the latter;
        read-only, because they are cached.
    """
    scale = np.float32(source / target)
    at = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    before = at.astype(np.int64)
    axis = before, np.minimum(before + 1, source - 1), at - before.astype(np.float32)
    for array in axis:
        array.flags.writeable = False
    return axis


def _bilinear(image: np.ndarray, target: np.ndarray) -> None:
    # cv2.resize rounds its weights: off by 0.01, which the network amplifies to 3e-4 in its outputs.
    top, bottom, down = bilinear_axis(image.shape[0], target.shape[0])
    left, right, across = bilinear_axis(image.shape[1], target.shape[1])
    across = across[None, :, None]
    wide = image[:, left] * (1 - across) + image[:, right] * across  # (H, size, 3)
    down = down[:, None, None]
    np.add(wide[top] * (1 - down), wide[bottom] * down, out=target)
