"""One optimisation step, its optimizer and learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolact.config import TrainConfig
from yolact.data.batch import Batch, Target
from yolact.losses import Losses, Matches, MultiBoxLoss, Totals, count_totals, match
from yolact.model import Yolact
from yolact.train.distributed import Processes, unwrap

AMP_TYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class NetworkWithLoss(nn.Module):
    """Network and loss as one module: what is differentiated, and what a process shares with the others.

    Args:
        model: The network.
        criterion: The loss; always computed in float32.
        settings: `amp` and `compile`.
    """

    def __init__(self, model: Yolact, criterion: MultiBoxLoss, settings: TrainConfig) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion
        self.amp_type = AMP_TYPES[settings.amp]
        self.network = torch.compile(model.forward_train) if settings.compile else model.forward_train

    def forward(self, images: Tensor, targets: Sequence[Target], matches: Matches, totals: Totals) -> Tensor:
        """The (5,) terms of `Losses` for images (B, 3, S, S)."""
        with torch.autocast(images.device.type, self.amp_type, enabled=self.amp_type is not None):
            output, semantic = self.network(images)
        losses = self.criterion(self.model, output, semantic, targets, matches, totals)
        terms = torch.stack(list(losses))
        if self.model.config.model.mask_iou:
            # A batch without large masks does not reach this net; other processes' batches may.
            terms = terms + 0 * sum(p.sum() for p in self.model.maskiou_net.parameters())
        return terms


def build_optimizer(model: Yolact, settings: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum, as published, or AdamW, which gets small networks off the ground sooner."""
    if settings.optimizer == "adamw":
        # With the usual 0.999, the large gradients of the start keep the steps of a short training small.
        betas = settings.momentum, 0.99
        return torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=betas, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def learning_rate(iteration: int, config: TrainConfig) -> float:
    """Linear warm-up from `warmup_lr`, then what `schedule` says.

    `steps`: `lr` times `gamma` for every step that is reached. `cosine`: from `lr` down to `cosine_final`
    times it, along half a cosine (Loshchilov and Hutter 2017, without restarts).

    Args:
        iteration: 0-based.
        config: Already scaled to its batch size (`TrainConfig.scaled`).
    """
    if iteration < config.warmup_iterations:
        done = iteration / config.warmup_iterations
        return config.warmup_lr + (config.lr - config.warmup_lr) * done
    if config.schedule == "cosine":
        length = max(1, config.max_iterations - config.warmup_iterations)
        done = min(1.0, (iteration - config.warmup_iterations) / length)
        falling = (1 + math.cos(math.pi * done)) / 2
        return config.lr * (config.cosine_final + (1 - config.cosine_final) * falling)
    return config.lr * config.gamma ** sum(iteration >= step for step in config.steps)


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes:
        losses: Terms of the whole batch, over all processes.
        grad_norm: L2 norm of the gradient before it was clipped.
        applied: Whether the weights changed.
        healthy: False where loss or gradient were not finite (an fp16 scale that is still too large is no
            illness).
        suspect: Which of this process's batches had a loss that is not finite; None where none had.
    """

    losses: dict[str, float]
    grad_norm: float
    applied: bool
    healthy: bool
    suspect: int | None


def training_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Sequence[Batch],
    max_grad_norm: float,
    processes: Processes = Processes(),  # noqa: B008
) -> Step:
    """Forward, backward and update on the batches of all processes, as if they were one batch.

    Sums are divided by the totals of the whole, known before the first forward pass because matching needs
    targets only. Weights stay as they are where the loss or its gradient is not finite.

    Args:
        module: A `NetworkWithLoss`, as `Processes.wrap` returned it.
        optimizer: Its rate is set.
        scaler: Enabled for fp16.
        batches: This process's part: one, or several whose gradients add up.
        max_grad_norm: 0 does not clip.
        processes: Who takes part.
    """
    inner = unwrap(module)
    assert isinstance(inner, NetworkWithLoss)
    optimizer.zero_grad(set_to_none=True)
    matches = [match(inner.model.priors, batch.targets, inner.criterion.config) for batch in batches]
    positives, images = processes.sum(torch.stack(count_totals(matches))).unbind()
    totals = Totals(positives, images)
    parts = []
    for index, (batch, matched) in enumerate(zip(batches, matches, strict=True)):
        with processes.postponed(module, more=index + 1 < len(batches)):
            terms = module(batch.images, batch.targets, matched, totals)
            # Gradients of processes are averaged, but these losses are shares of one sum.
            scaler.scale(terms.sum() * processes.count).backward()
        parts.append(terms.detach())
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(inner.parameters(), max_grad_norm or math.inf)
    own = torch.stack(parts)  # (batches, 5)
    # Read once: every reading makes the CPU wait for the GPU.
    *values, grad_norm = torch.cat([processes.sum(own.sum(dim=0)), norm[None].float()]).tolist()
    finite = all(map(math.isfinite, values))
    applied = finite and math.isfinite(grad_norm)
    if applied or scaler.is_enabled():
        # The scaler leaves the step out itself, and tries a smaller scale next.
        scaler.step(optimizer)
        scaler.update()
    return Step(
        losses=dict(zip(Losses._fields, values, strict=True)),
        grad_norm=grad_norm,
        applied=applied,
        healthy=applied or (finite and scaler.is_enabled() and scaler.get_scale() > 1),
        suspect=None if finite else _first_bad(own),
    )


def _first_bad(terms: Tensor) -> int | None:
    rows = (~terms.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    return rows[0] if rows else None
