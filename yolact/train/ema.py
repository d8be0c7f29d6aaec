"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch

from yolact.model import Yolact


class Ema:
    """A second network that follows the trained one slowly, and usually finds a little more.

    The decay warms up, min(decay, (1 + n) / (10 + n)) at update n, so that the random start is soon
    forgotten. (`torch.optim.swa_utils.AveragedModel` would wait for the GPU to know n.)

    Attributes:
        model: The averaged network: parameters and batch norm statistics are averaged, counters copied.
        updates: How many updates it has had.
    """

    def __init__(self, model: Yolact, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Yolact) -> None:
        """Move a little towards `model`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in moving], [other for _, other in moving], 1 - decay)
        for own, other in pairs:
            if not own.is_floating_point():
                own.copy_(other)
