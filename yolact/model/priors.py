"""Prior boxes and feature-map sizes of a model configuration."""

from __future__ import annotations

import torch
from torch import Tensor

from yolact.config import ModelConfig
from yolact_runtime.metadata import InputSize, height_width
from yolact_runtime.priors import make_priors

NUM_LEVELS = 5


def pyramid_levels(input_size: InputSize) -> list[tuple[int, int]]:
    """(height, width) of P3..P7; every stride-2 layer of the network rounds up."""
    height, width = height_width(input_size)
    sizes = []
    for _ in range(2 + NUM_LEVELS):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes[2:]


def prototype_size(input_size: InputSize, proto_scale: float = 0.25) -> tuple[int, int]:
    """(Hp, Wp) of the prototypes: those of P3, which has an eighth of the input's sides, times 1, 2 or 4."""
    height, width = pyramid_levels(input_size)[0]
    enlarged = round(8 * proto_scale)
    return enlarged * height, enlarged * width


def model_priors(model: ModelConfig) -> Tensor:
    """All prior boxes (P, 4) float32: centre x, centre y, width, height, relative to the input."""
    priors = make_priors(
        pyramid_levels(model.input_size),
        model.prior_scales,
        model.prior_aspect_ratios,
        model.input_size,
        model.prior_square,
    )
    return torch.from_numpy(priors)
