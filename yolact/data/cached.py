"""Training samples that stay in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from yolact.data.batch import Sample, Target
from yolact.data.coco import CocoDataset
from yolact_runtime.errors import UsageError


class CachedDataset(CocoDataset):
    """A `CocoDataset` that computes each sample once, and then only mirrors and flips it.

    Every DataLoader worker has its own cache.

    Raises:
        UsageError: the augmentation is more than `mirror` and `flip`.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._samples: dict[int, Sample] = {}
        self._flips, self.augmenter = self.augmenter, None
        for name in ("photometric", "expand", "crop", "rotate"):
            if self._flips and getattr(self._flips.config, name):
                raise UsageError(
                    f"train.cache_samples with augment.{name}: samples in memory can only be mirrored and"
                    f" flipped; set train.cache_samples=false or augment.{name}=false"
                )

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """The sample of (epoch, index), as `CocoDataset` returns it."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if index not in self._samples:
            self._samples[index] = super().__getitem__(index)
        sample = self._samples[index]
        if self._flips:
            config = self._flips.config
            draws = np.random.default_rng((self._flips.seed % 2**64, epoch, index)).random(2) < 0.5
            for axis, enabled in enumerate((config.mirror, config.flip)):
                if enabled and draws[axis]:
                    sample = mirrored(sample, axis)
        return sample


def mirrored(sample: Sample, axis: int) -> Sample:
    """The sample mirrored along `axis`: 0 left to right, 1 top to bottom."""
    target, side = sample.target, -1 - axis

    def mirror(boxes: Tensor) -> Tensor:
        boxes = boxes.clone()
        boxes[:, [axis, axis + 2]] = 1 - boxes[:, [axis + 2, axis]]
        return boxes

    masks, semantic_masks = target.masks.flip(side), target.semantic_masks.flip(side)
    boxes, crowd_boxes = mirror(target.boxes), mirror(target.crowd_boxes)
    return Sample(
        sample.image.flip(side),
        Target(boxes, target.labels, masks, semantic_masks, crowd_boxes),
        sample.image_id,
    )
