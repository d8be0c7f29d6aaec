"""Pictures of a training: what the network is trained on, and what it predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from yolact.config import Config
from yolact.data.batch import Batch, Sample
from yolact.dataset_tools.show import draw_sample

TILE = 480  # pixels on a side


def draw_batch(batch: Batch, config: Config, count: int) -> np.ndarray:
    """The first `count` images of a batch with boxes and masks, as the network is trained on them.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    samples = zip(batch.images, batch.targets, batch.image_ids, strict=True)
    tiles = [draw_sample(Sample(*sample), config.classes, config.model) for sample in samples]
    return mosaic(tiles[:count])


def mosaic(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3) uint8 side by side in a square grid, each scaled to fit its tile."""
    columns = max(1, math.ceil(math.sqrt(len(images))))
    rows = max(1, math.ceil(len(images) / columns))
    canvas = np.zeros((rows * TILE, columns * TILE, 3), np.uint8)
    for index, image in enumerate(images):
        scale = TILE / max(image.shape[:2])
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        row, column = divmod(index, columns)
        y, x = row * TILE + (TILE - height) // 2, column * TILE + (TILE - width) // 2
        canvas[y : y + height, x : x + width] = cv2.resize(
            image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
    return canvas
