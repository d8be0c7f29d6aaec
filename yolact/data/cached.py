"""Training samples that stay in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from yolact.config import AugmentConfig, Classes, ModelConfig
from yolact.data.batch import Sample, Target
from yolact.data.coco import CocoDataset
from yolact_runtime.errors import UsageError


class CachedDataset(CocoDataset):
    """A dataset small enough for memory: each sample is made once, then only mirrored and flipped.

    Every DataLoader worker has a cache of its own; without workers there is one.

    Args:
        As for `CocoDataset`.

    Raises:
        UsageError: `augment` asks for more than `mirror` and `flip`.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        model: ModelConfig,
        classes: Classes,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(images, annotations, model, classes)
        self._augment = augment if augment and augment.enabled else None
        self._seed = seed
        self._samples: dict[int, Sample] = {}
        for name in ("photometric", "expand", "crop", "rotate"):
            if self._augment and getattr(self._augment, name):
                raise UsageError(
                    f"train.cache_samples with augment.{name}: samples in memory can only be mirrored and"
                    f" flipped; set train.cache_samples=false or augment.{name}=false"
                )

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if index not in self._samples:
            self._samples[index] = super().__getitem__(index)
        sample = self._samples[index]
        if self._augment:
            mirror, flip = np.random.default_rng((self._seed % 2**64, epoch, index)).random(2) < 0.5
            if mirror and self._augment.mirror:
                sample = mirrored(sample, 0)
            if flip and self._augment.flip:
                sample = mirrored(sample, 1)
        return sample


def mirrored(sample: Sample, axis: int) -> Sample:
    """The sample mirrored along `axis`: 0 left to right, 1 top to bottom."""

    def mirror(boxes: Tensor) -> Tensor:
        boxes = boxes.clone()
        boxes[:, [axis, axis + 2]] = 1 - boxes[:, [axis + 2, axis]]
        return boxes

    target, side = sample.target, -1 - axis
    return Sample(
        sample.image.flip(side),
        Target(
            mirror(target.boxes),
            target.labels,
            target.masks.flip(side),
            target.semantic_masks.flip(side),
            mirror(target.crowd_boxes),
        ),
        sample.image_id,
    )
