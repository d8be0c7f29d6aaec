"""What the network is trained towards, for one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Target:
    """Ground truth of one image, G instances and Q crowd regions.

    Attributes:
        boxes: (G, 4) float32, x1 y1 x2 y2 relative to the image.
        labels: (G,) int64, 0-based class indices.
        masks: (G, Hp, Wp) bool, at the size of the prototypes.
        semantic_masks: (G, H3, W3) bool, at the size of P3.
        crowd_boxes: (Q, 4) float32, regions where an unmatched prior is neither right nor wrong.
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
