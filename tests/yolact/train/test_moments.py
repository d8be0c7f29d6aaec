"""Fused optimizers continue as plain ones do, whatever the layout and parameters of the checkpoint."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from yolact.config import TrainConfig
from yolact.train.mode import memory_format
from yolact.train.resume import restore_optimizer
from yolact.train.step import build_optimizer

CPU = torch.device("cpu")


def network(fast: bool) -> nn.Sequential:
    """A small network, in the layout of a training with `train.fast` = `fast`."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(5, 4, 3, bias=False), nn.BatchNorm2d(4))
    return module.to(memory_format=memory_format(CPU, TrainConfig(fast=fast)))


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    images = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(seed))
    (module(images) - 1).pow(3).mean().backward()
    optimizer.step()


def saved(*states: dict[str, Any]) -> list[dict[str, Any]]:
    """The states after they were written to a file and read again."""
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return list(torch.load(file))


def set_frozen(module: nn.Sequential, frozen: bool) -> None:
    module[1].requires_grad_(not frozen)


def resume_plain(module: nn.Module, moments: dict[str, Any], settings: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of PyTorch that is not fused, with these moments."""
    optimizer = build_optimizer(module, settings)  # type: ignore[arg-type]
    optimizer.state.clear()
    optimizer.load_state_dict(moments)
    for group in optimizer.param_groups:
        group["fused"] = group["foreach"] = False
    return optimizer


def resume_own(module: nn.Module, moments: dict[str, Any], settings: TrainConfig) -> torch.optim.Optimizer:
    optimizer = build_optimizer(module, settings)  # type: ignore[arg-type]
    restore_optimizer(optimizer, moments, settings, Path("checkpoint.pth"))
    return optimizer


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("before", "after", "frozen"),
    [(False, True, False), (True, False, False), (True, True, True)],
    ids=["fast switched on", "fast switched off", "batch norm unfrozen"],
)
def test_a_resumed_step_is_that_of_the_plain_optimizer(
    name: str, before: bool, after: bool, frozen: bool
) -> None:
    settings = TrainConfig(optimizer=name, lr=0.1)
    first = network(before)
    set_frozen(first, frozen)
    optimizer = build_optimizer(first, settings)  # type: ignore[arg-type]
    step(first, optimizer, 1)
    weights, moments = saved(first.state_dict(), optimizer.state_dict())
    results = []
    for resume, fast in ((resume_own, after), (resume_plain, before)):
        module = network(fast)
        module.load_state_dict(weights)
        resumed = resume(module, copy.deepcopy(moments), settings)
        for seed in (2, 3):
            step(module, resumed, seed)
        results.append(module)
    for own, expected, old in zip(*(m.parameters() for m in results), first.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)
        assert (expected - old).norm() > 1e-3


def test_an_overflow_in_the_first_step_leaves_no_trace() -> None:
    module = network(True)
    set_frozen(module, True)
    optimizer = build_optimizer(module, TrainConfig(momentum=0.9, weight_decay=0.0, lr=0.5))  # type: ignore[arg-type]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    (weight, *_) = module.parameters()
    start = weight.detach().clone()
    # Freed memory that is not zero.
    del (junk := [torch.full_like(weight, 777.0) for _ in range(8)])[:], junk
    for gradient in (math.inf, 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale((weight * gradient).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(weight, start - 0.5 * (1 + 1.9))


def test_momentum_may_be_set_to_zero_and_back() -> None:
    module = network(True)
    state: dict[str, Any] | None = None
    for number, momentum in enumerate((0.9, 0.0, 0.9)):
        settings = TrainConfig(momentum=momentum)
        optimizer = (
            resume_own(module, state, settings) if state else build_optimizer(module, settings)  # type: ignore[arg-type]
        )
        step(module, optimizer, number)
        (state,) = saved(optimizer.state_dict())
    assert all(parameter.isfinite().all() for parameter in module.parameters())
