"""From resized BGR images to the network's input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolact.config import ModelConfig


class Normalise(nn.Module):
    """(N, H, W, 3) uint8 or float32 BGR 0..255 to (N, 3, H, W) float32 RGB, minus mean, over std."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(model.mean), persistent=False)
        self.register_buffer("std", torch.tensor(model.std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        normalised = (images.float() - self.mean) / self.std
        return normalised.flip(-1).permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W)
