"""The prediction head that all pyramid levels share (paper, section 3.2 and figure 4)."""

from __future__ import annotations

from torch import Tensor, nn


class Head(nn.Module):
    """Boxes, class logits and mask coefficients of every prior.

    Args:
        features: Channels of the pyramid.
        priors: A, priors a cell.
        num_classes: C, without background.
        num_prototypes: M, mask coefficients.
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
        values = x.shape[1] // self.priors
        # (N, A*V, H, W) -> (N, H, W, A*V) -> (N, H*W*A, V)
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)
