"""What several peers need: batches to prepare, and run lengths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

PREPARED = 8  # different batches that the network alone is given in turn


def different_batches(images: Sequence[Path], size: int) -> list[list[Path]]:
    """The first batches of the images in turn, no more than cover them once."""
    files = itertools.cycle(images)
    count = min(PREPARED, -(-len(images) // size))
    return [list(itertools.islice(files, size)) for _ in range(count)]


def encode(masks: np.ndarray) -> list[dict[str, Any]]:
    """Run lengths of (n, H, W) masks, in one call of pycocotools."""
    by_column = np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)  # (H, W, n)
    encoded: list[dict[str, Any]] = coco_mask.encode(by_column)
    return encoded
