"""Prior boxes, which the box regression is relative to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolact_runtime.metadata import InputSize, height_width


def make_priors(
    levels: Sequence[tuple[int, int]],
    scales: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float],
    input_size: InputSize,
    square: bool,
) -> np.ndarray:
    """Prior boxes of all pyramid levels, in the order of the network's outputs.

    Within a level the order is row, column, scale, aspect ratio.

    Args:
        levels: (height, width) of each level's feature map.
        scales: For each level its box sizes in input pixels.
        aspect_ratios: Width over height, the same for every level.
        input_size: Of the network's input in pixels: S, the side of a square, or (H, W).
        square: Use height = width in pixels, as the published YOLACT models were trained (a bug of the
            original code that its weights depend on).

    Returns:
        (P, 4) float32: centre x, centre y, width, height relative to the input (0..1).
    """
    height_in, width_in = height_width(input_size)
    boxes = []
    for (height, width), level_scales in zip(levels, scales, strict=True):
        root = np.sqrt(np.asarray(aspect_ratios, np.float64))
        sizes = np.asarray(level_scales, np.float64)[:, None]
        widths = (sizes * root / width_in).reshape(-1)  # (A,)
        heights = ((sizes * root if square else sizes / root) / height_in).reshape(-1)  # (A,)
        ys, xs = np.meshgrid(
            (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij"
        )
        level = np.empty((height, width, len(widths), 4))
        level[..., 0], level[..., 1] = xs[..., None], ys[..., None]
        level[..., 2], level[..., 3] = widths, heights
        boxes.append(level.reshape(-1, 4))  # (H*W*A, 4)
    return np.concatenate(boxes).astype(np.float32)
