"""Fast mask re-scoring (YOLACT++, section 6.1)."""

from __future__ import annotations

from torch import Tensor, nn


class MaskIoUNet(nn.Module):
    """Predicts, from a cropped mask at prototype size, its IoU with the truth for every class."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (8, 16, 32, 64, 128):
            layers += [nn.Conv2d(channels, width, 3, stride=2), nn.ReLU()]
            channels = width
        layers += [nn.Conv2d(channels, num_classes, 1), nn.ReLU()]
        self.maskiou_net = nn.Sequential(*layers)

    def forward(self, masks: Tensor) -> Tensor:
        """Masks (n, 1, Hp, Wp) in 0..1 to IoU (n, C)."""
        return self.maskiou_net(masks).amax(dim=(2, 3))  # (n, C, h, w) -> (n, C)
