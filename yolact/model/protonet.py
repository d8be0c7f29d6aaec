"""Protonet: image-sized prototype masks (paper, section 3.1 and figure 3)."""

from __future__ import annotations

from torch import nn


def build_protonet(features: int, num_prototypes: int) -> nn.Sequential:
    """P3 (N, features, H, W) to prototypes (N, num_prototypes, 2H, 2W), non-negative."""

    def conv() -> nn.Conv2d:
        return nn.Conv2d(features, features, 3, padding=1)

    return nn.Sequential(
        conv(),
        nn.ReLU(),
        conv(),
        nn.ReLU(),
        conv(),
        nn.ReLU(),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.ReLU(),
        conv(),
        nn.ReLU(),
        nn.Conv2d(features, num_prototypes, 1),
        nn.ReLU(),
    )
