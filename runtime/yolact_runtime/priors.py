"""Prior boxes, which the box regression is relative to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def make_priors(
    levels: Sequence[tuple[int, int]],
    scales: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float],
    input_size: int,
    square: bool,
) -> np.ndarray:
    """Prior boxes of all pyramid levels, in the order of the network's outputs.

    Within a level the order is row, column, scale, aspect ratio.

    Args:
        levels: (height, width) of each level's feature map.
        scales: For each level its box sizes in input pixels.
        aspect_ratios: Width over height, the same for every level.
        input_size: S, side of the network's input in pixels.
        square: Use height = width, as the published YOLACT models were trained (a bug of the original
            code that its weights depend on).

    Returns:
        (P, 4) float32: centre x, centre y, width, height relative to the input (0..1).
    """
    boxes = []
    for (height, width), level_scales in zip(levels, scales, strict=True):
        root = np.sqrt(np.asarray(aspect_ratios, np.float64))
        sizes = np.asarray(level_scales, np.float64)[:, None]
        widths = (sizes * root / input_size).reshape(-1)  # (A,)
        heights = widths if square else (sizes / root / input_size).reshape(-1)  # (A,)
        ys, xs = np.meshgrid(
            (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij"
        )
        level = np.empty((height, width, len(widths), 4))
        level[..., 0], level[..., 1] = xs[..., None], ys[..., None]
        level[..., 2], level[..., 3] = widths, heights
        boxes.append(level.reshape(-1, 4))  # (H*W*A, 4)
    return np.concatenate(boxes).astype(np.float32)
