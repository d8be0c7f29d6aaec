"""Random weights made to work as hard as trained ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Pairs of box and class, or boxes, that pass the score threshold and go into NMS.
CANDIDATES = 1000
TOLD = (
    "random weights: detections mean nothing; batch norm set by the first image, threshold put where"
    f" {CANDIDATES} of its candidates pass"
)


def settle(model: torch.nn.Module, forward: Callable[[], object]) -> None:
    """Give batch norm the statistics of what `forward` runs through the model.

    Without it random features grow or shrink from layer to layer, until all boxes are the same and all masks
    empty, and there is nothing left to do after the network.
    """
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        forward()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def threshold(scores: torch.Tensor) -> float:
    """The score that `CANDIDATES` of them pass."""
    flat = scores.flatten()
    return float(flat.topk(min(CANDIDATES + 1, len(flat))).values[-1])
