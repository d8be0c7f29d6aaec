"""What follows the pyramid: prediction head, protonet, and the mask IoU net of YOLACT++."""

from __future__ import annotations

from torch import Tensor, nn


class Head(nn.Module):
    """Boxes, class logits and mask coefficients of every prior (YOLACT, Sec. 3.2), shared by all levels.

    Args:
        features: Channels of the pyramid.
        priors: A, priors in a cell.
        num_classes: C, without background.
        num_prototypes: M, mask coefficients of a prior.
    """

    def __init__(self, features: int, priors: int, num_classes: int, num_prototypes: int) -> None:
        super().__init__()
        self.upfeature = nn.Sequential(nn.Conv2d(features, features, 3, padding=1), nn.ReLU())
        self.bbox_layer = nn.Conv2d(features, priors * 4, 3, padding=1)
        self.conf_layer = nn.Conv2d(features, priors * (num_classes + 1), 3, padding=1)
        self.mask_layer = nn.Conv2d(features, priors * num_prototypes, 3, padding=1)
        self.priors = priors

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One level (N, features, H, W) to (N, H*W*A, 4), (N, H*W*A, C+1) and (N, H*W*A, M)."""
        x = self.upfeature(x)
        return (
            self._per_prior(self.bbox_layer(x)),
            self._per_prior(self.conf_layer(x)),
            self._per_prior(self.mask_layer(x)).tanh(),
        )

    def _per_prior(self, x: Tensor) -> Tensor:
        """Outputs (N, A*V, H, W) with V values for each prior of a cell: (N, H*W*A, V)."""
        values = x.shape[1] // self.priors
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)  # through (N, H, W, A*V)


def build_protonet(features: int, num_prototypes: int, enlarged: int = 2) -> nn.Sequential:
    """Protonet (YOLACT, Sec. 3.1).

    Args:
        features: Channels of P3.
        num_prototypes: M.
        enlarged: Sides of the prototypes over those of P3; no weight depends on it.

    Returns:
        P3 (N, features, H, W) to prototypes >= 0 (N, M, enlarged * H, enlarged * W).
    """

    def conv() -> nn.Conv2d:
        return nn.Conv2d(features, features, 3, padding=1)

    return nn.Sequential(
        conv(),
        nn.ReLU(),
        conv(),
        nn.ReLU(),
        conv(),
        nn.ReLU(),
        nn.Upsample(scale_factor=enlarged, mode="bilinear", align_corners=False)
        if enlarged > 1
        else nn.Identity(),
        nn.ReLU(),
        conv(),
        nn.ReLU(),
        nn.Conv2d(features, num_prototypes, 1),
        nn.ReLU(),
    )


class MaskIoUNet(nn.Module):
    """Predicts a mask's IoU with its object, for every class, from the cropped mask (YOLACT++, Sec. 6.1)."""

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
