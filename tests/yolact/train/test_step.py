"""Steps in parts, in other precision and on average; schedules of the effective batch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from yolact.config import TrainConfig
from yolact.data.annotations import read_classes
from yolact.data.batch import collate
from yolact.data.coco import CocoDataset
from yolact.losses import MultiBoxLoss
from yolact.model import Yolact
from yolact.registry import get_config
from yolact.train.sampler import EpochBatches, SharedBatches
from yolact.train.step import Ema, NetworkWithLoss, Step, learning_rate, training_step


def take_step(shapes: Path, parts: list[list[int]], **settings: Any) -> tuple[Yolact, Step]:
    """One step of a seeded tiny network on images 0..5 in `parts`."""
    torch.manual_seed(1)
    config = get_config("yolact_tiny")
    train = replace(config.train, **settings)
    annotations = shapes / "annotations/instances_train.json"
    config = replace(config, classes=read_classes(annotations), train=train)
    data = CocoDataset(shapes / "train", annotations, config.model, config.classes)
    model = Yolact(config).train()
    model.freeze_batch_norm()
    module = NetworkWithLoss(model, MultiBoxLoss(config.loss), train)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=train.amp == "fp16", init_scale=256.0)
    batches = [collate([data[index] for index in part]) for part in parts]
    return model, training_step(module, optimizer, scaler, batches, train.max_grad_norm)


def gradient(model: Yolact) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_accumulated_parts_have_the_gradient_of_the_whole(shapes: Path) -> None:
    whole, step = take_step(shapes, [[0, 1, 2, 3, 4, 5]], max_grad_norm=0.0)
    parts, accumulated = take_step(shapes, [[0, 4], [2], [1, 3, 5]], max_grad_norm=0.0)
    assert accumulated.losses == pytest.approx(step.losses, rel=1e-5)
    expected = gradient(whole)
    assert (gradient(parts) - expected).norm() < 1e-5 * expected.norm()
    assert accumulated.grad_norm == pytest.approx(expected.norm().item(), rel=1e-4)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_is_near_and_the_loss_in_float32(shapes: Path, amp: str) -> None:
    _, exact = take_step(shapes, [[0, 1]])
    model, step = take_step(shapes, [[0, 1]], amp=amp)
    assert step.applied
    assert step.losses == pytest.approx(exact.losses, rel=0.02)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert step.losses != exact.losses


def test_clipping(shapes: Path) -> None:
    model, step = take_step(shapes, [[0]], max_grad_norm=0.5)
    assert step.grad_norm > 0.5
    assert gradient(model).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_average_is_the_closed_form(shapes: Path) -> None:
    model = Yolact(get_config("yolact_tiny"))
    ema = Ema(model, 0.5)
    key = "fpn.lat_layers.0.bias"
    expected = model.state_dict()[key].clone()
    for update in range(1, 12):
        for parameter in model.parameters():
            parameter.data.add_(1.0)
        ema.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.state_dict()[key]
    torch.testing.assert_close(ema.model.state_dict()[key], expected)


def test_cosine() -> None:
    config = TrainConfig(schedule="cosine", warmup_iterations=100, max_iterations=1100, cosine_final=0.1)
    assert learning_rate(50, config) == pytest.approx(5.5e-4)
    assert learning_rate(100, config) == 1e-3
    assert learning_rate(600, config) == pytest.approx(1e-3 * 0.55)
    assert learning_rate(350, config) == pytest.approx(1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert learning_rate(1100, config) == pytest.approx(1e-4)


def test_the_effective_batch_decides_the_scale() -> None:
    four_times = TrainConfig(batch_size=8, accumulate=4).scaled()
    assert four_times.lr == TrainConfig(batch_size=32).scaled().lr == 4e-3
    assert four_times.max_iterations == 200_000
    assert TrainConfig(batch_size=2, accumulate=4).scaled() == TrainConfig(batch_size=2, accumulate=4)


@pytest.mark.parametrize(("accumulate", "processes"), [(1, 1), (2, 3), (3, 2), (4, 1)])
def test_shares_add_up_to_the_whole(accumulate: int, processes: int) -> None:
    whole = EpochBatches(40, 13, 0, 1, 5)
    shares = [list(SharedBatches(whole, accumulate, rank, processes)) for rank in range(processes)]
    for number, batch in enumerate(whole):
        parts = [part for share in shares for part in share[number * accumulate : (number + 1) * accumulate]]
        assert sorted(index for part in parts for index in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
