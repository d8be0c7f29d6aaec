"""Random weights that give as much work as trained ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Pairs of box and class, or boxes, that pass the score threshold and enter NMS.
CANDIDATES = 1000
NOTE = (
    "random weights: detections mean nothing; batch norm set by the first image, threshold set so that"
    f" {CANDIDATES} of its candidates pass"
)


def settle_batch_norm(model: torch.nn.Module, forward: Callable[[], object]) -> None:
    """Set the statistics of batch norm to those of the data that `forward` runs through the model.

    Without this, random features grow or shrink from layer to layer, until all boxes are the same and all
    masks empty, and nothing is left to do after the network. Batch norm is in evaluation mode afterwards.
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
    """The score that `CANDIDATES` of them exceed."""
    flat = scores.flatten()
    return float(flat.topk(min(CANDIDATES + 1, len(flat))).values[-1])
