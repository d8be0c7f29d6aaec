"""Training samples and batches: images and their ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import default_collate


@dataclass
class Target:
    """Ground truth of one image, G instances and Q crowd regions.

    Attributes:
        boxes: (G, 4) float32, x1 y1 x2 y2 relative to the image.
        labels: (G,) int64, 0-based class indices.
        masks: (G, Hp, Wp) bool, at the size of the prototypes.
        semantic_masks: (G, H3, W3) bool, at the size of P3.
        crowd_boxes: (Q, 4) float32, regions in which unmatched priors are neutral.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    semantic_masks: Tensor
    crowd_boxes: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        """The same target on `device`."""
        return Target(**{name: t.to(device, non_blocking=non_blocking) for name, t in vars(self).items()})

    def pin_memory(self) -> Target:
        """The same target in pinned host memory (what a DataLoader calls)."""
        return Target(**{name: tensor.pin_memory() for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class Sample:
    """One training image.

    Attributes:
        image: (3, H, W) float32, RGB, normalised.
        target: Its ground truth.
        image_id: Its id in the annotation file.
    """

    image: Tensor
    target: Target
    image_id: int


@dataclass(frozen=True)
class Batch:
    """Several samples: images (B, 3, H, W) float32, and as many targets and image ids."""

    images: Tensor
    targets: list[Target]
    image_ids: list[int]

    def __len__(self) -> int:
        return len(self.targets)

    def to(
        self,
        device: torch.device | str,
        non_blocking: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Batch:
        """The same batch on `device`, its images in `memory_format`."""
        return Batch(
            self.images.to(device, non_blocking=non_blocking, memory_format=memory_format),
            [target.to(device, non_blocking) for target in self.targets],
            self.image_ids,
        )

    def pin_memory(self) -> Batch:
        """The same batch in pinned host memory (what a DataLoader calls)."""
        return Batch(self.images.pin_memory(), [t.pin_memory() for t in self.targets], self.image_ids)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch: the `collate_fn` of a DataLoader."""
    return Batch(
        default_collate([sample.image for sample in samples]),  # in a worker directly to shared memory
        [sample.target for sample in samples],
        [sample.image_id for sample in samples],
    )
