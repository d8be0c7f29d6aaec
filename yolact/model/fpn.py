"""Feature pyramid network (Lin et al. 2017) as YOLACT uses it (YOLACT, Sec. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """C3..C5 to P3..P7.

    The lateral and output layers are stored from the coarsest level to the finest, as in the
    published checkpoints.

    Args:
        in_channels: Channels of C3, C4, C5.
        features: Channels of every output.
    """

    def __init__(self, in_channels: Sequence[int], features: int) -> None:
        super().__init__()
        self.lat_layers = nn.ModuleList(nn.Conv2d(c, features, 1) for c in reversed(in_channels))
        self.pred_layers = nn.ModuleList(nn.Conv2d(features, features, 3, padding=1) for _ in in_channels)
        self.downsample_layers = nn.ModuleList(
            nn.Conv2d(features, features, 3, stride=2, padding=1) for _ in range(2)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """C3..C5 (N, C_i, H_i, W_i) to P3..P7 (N, features, H_i, W_i)."""
        coarse_to_fine = list(reversed(maps))
        merged = [self.lat_layers[0](coarse_to_fine[0])]
        for lateral, finer in zip(list(self.lat_layers)[1:], coarse_to_fine[1:], strict=True):
            larger = F.interpolate(merged[-1], finer.shape[-2:], mode="bilinear", align_corners=False)
            merged.append(larger + lateral(finer))
        outputs = [layer(x).relu() for layer, x in zip(self.pred_layers, merged, strict=True)][::-1]
        for layer in self.downsample_layers:
            outputs.append(layer(outputs[-1]))
        return outputs
