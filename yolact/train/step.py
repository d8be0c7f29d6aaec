"""One optimisation step: loss, optimizer, learning rate and moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from yolact.config import TrainConfig
from yolact.data.batch import Batch, Target
from yolact.losses import Losses, Matches, MultiBoxLoss, Totals, count_totals, match
from yolact.model import Yolact
from yolact.train.distributed import Processes, unwrap
from yolact.train.network import forward_train

AMP_TYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class NetworkWithLoss(nn.Module):
    """Network and loss as one module, which processes share.

    Args:
        model: The network.
        criterion: The loss, computed in float32.
        settings: `amp`, `fast` and `compile`.
    """

    def __init__(self, model: Yolact, criterion: MultiBoxLoss, settings: TrainConfig) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion
        self.amp_type = AMP_TYPES[settings.amp]
        network = partial(forward_train, model) if settings.fast else model.forward_train
        self.network = torch.compile(network) if settings.compile else network

    def forward(self, images: Tensor, targets: Sequence[Target], matches: Matches, totals: Totals) -> Tensor:
        """The terms (5,) of `Losses` for images (B, 3, S, S)."""
        with torch.autocast(images.device.type, self.amp_type, enabled=self.amp_type is not None):
            output, semantic = self.network(images)
        losses = self.criterion(self.model, output, semantic, targets, matches, totals)
        terms = torch.stack(list(losses))
        if self.model.config.model.mask_iou:
            # A batch without large masks does not use this net, but other processes wait for its gradients.
            terms = terms + 0 * sum(p.sum() for p in self.model.maskiou_net.parameters())
        return terms


def build_optimizer(model: Yolact, settings: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum, as published, or AdamW, with which small networks learn faster."""
    if settings.optimizer == "adamw":
        # With the usual 0.999, the large gradients of the start keep the steps of a short training small.
        betas = settings.momentum, 0.99
        return torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=betas, weight_decay=settings.weight_decay, fused=True
        )
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,  # one pass over the weights
    )
    complete_moments(optimizer)
    return optimizer


def complete_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory layout of their parameters, and SGD the momentum buffers that are missing.

    On CPUs, fused optimizers ignore strides. Fused SGD creates buffers for all parameters or for none, and
    leaves them uninitialised if the first step overflows. A first step from zeros gives the same buffers.
    """
    for group in optimizer.param_groups:
        has_buffers = isinstance(optimizer, torch.optim.SGD) and group["momentum"] != 0
        for parameter in group["params"]:
            moments = optimizer.state.get(parameter, {})
            for name, value in moments.items():
                if name != "step" and value is not None:
                    moments[name] = torch.empty_like(parameter).copy_(value)
            if has_buffers and parameter.requires_grad and moments.get("momentum_buffer") is None:
                optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}


def learning_rate(iteration: int, config: TrainConfig) -> float:
    """The learning rate: linear warm-up from `warmup_lr`, then `schedule`.

    `steps`: `lr` times `gamma` for every step reached. `cosine`: from `lr` down to `cosine_final` times `lr`,
    along half a cosine (Loshchilov and Hutter 2017, without restarts).

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


class Ema:
    """Exponential moving average (EMA) of the weights, which usually has a slightly higher AP.

    The decay warms up, min(decay, (1 + n) / (10 + n)) at update n, so that the initial weights lose influence
    soon. (`torch.optim.swa_utils.AveragedModel` would wait for the GPU to read n.)

    Attributes:
        model: The averaged network: parameters and batch norm statistics are averaged, counters copied.
        updates: Number of updates.
    """

    def __init__(self, model: Yolact, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Yolact) -> None:
        """Move towards the weights of `model`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in moving], [other for _, other in moving], 1 - decay)
        for own, other in pairs:
            if not own.is_floating_point():
                own.copy_(other)


@dataclass(frozen=True)
class Step:
    """The result of one step.

    Attributes:
        losses: Terms of the whole batch, over all processes.
        grad_norm: L2 norm of the gradient before clipping.
        applied: Whether the weights changed.
        healthy: False if loss or gradient were not finite, unless the fp16 scale is still being lowered.
        suspect: Index of this process's first batch whose loss is not finite; None if there is none.
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
    only targets. If the loss or its gradient is not finite, weights do not change.

    Args:
        module: A `NetworkWithLoss`, wrapped by `Processes.wrap`.
        optimizer: With its learning rate set.
        scaler: Enabled for fp16.
        batches: This process's share: one, or several whose gradients add up.
        max_grad_norm: L2 norm to clip to; 0: do not clip.
        processes: The processes that take part.
    """
    inner = unwrap(module)
    assert isinstance(inner, NetworkWithLoss)
    optimizer.zero_grad(set_to_none=True)
    matches = [match(inner.model.priors, batch.targets, inner.criterion.config) for batch in batches]
    positives, images = processes.sum(torch.stack(count_totals(matches))).unbind()
    totals = Totals(positives, images)
    terms_of = []
    for index, (batch, matched) in enumerate(zip(batches, matches, strict=True)):
        with processes.postponed(module, more=index + 1 < len(batches)):
            terms = module(batch.images, batch.targets, matched, totals)
            # Gradients of processes are averaged, but these losses are shares of one sum.
            scaler.scale(terms.sum() * processes.count).backward()
        terms_of.append(terms.detach())
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(inner.parameters(), max_grad_norm or math.inf)
    own = torch.stack(terms_of)  # (batches, 5)
    # One read: each makes the CPU wait for the GPU.
    *values, grad_norm = torch.cat([processes.sum(own.sum(dim=0)), norm[None].float()]).tolist()
    finite = all(map(math.isfinite, values))
    applied = finite and math.isfinite(grad_norm)
    if applied or scaler.is_enabled():
        # After overflow the scaler itself skips the step, and lowers its scale.
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
    """The first row of (batches, 5) that is not finite."""
    rows = (~terms.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    return rows[0] if rows else None
