"""What a resumed training may change, and the state that it continues from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from yolact.config import Classes, Config, TrainConfig
from yolact.settings import differences
from yolact.weights.load import Checkpoint
from yolact_runtime.errors import UsageError, YolactError, first_line

# The state of the training belongs to these; all other settings may change from one run to the next.
FIXED = ("name", "model.", "train.optimizer", "train.init", "train.seed", "train.val_fraction")


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds to continue from, apart from weights.

    Attributes:
        optimizer: State dict.
        scaler: State dict of the gradient scaler; empty without one.
        ema_updates: Number of updates of the averaged weights.
        best: The highest quality of a validation, -1 without one.
        awaits_validation: Whether a validation was due, but not finished, when the checkpoint was saved.
        written: Names of the checkpoints of the run, oldest first.
    """

    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    ema_updates: int = 0
    best: float = -1.0
    awaits_validation: bool = False
    written: list[Any] = field(default_factory=list)


_NEW = TrainingState()


def training_state(checkpoint: Checkpoint | None) -> TrainingState | None:
    """The state in a checkpoint; None if it holds weights only.

    Raises:
        YolactError: it is damaged.
    """
    if checkpoint is None or checkpoint.training is None:
        return None
    found = {}
    for each in fields(TrainingState):
        value = checkpoint.training.get(each.name)
        default = getattr(_NEW, each.name)
        if value is not None and type(value) is not type(default):
            raise YolactError(
                f"{checkpoint.path}: the state of its training is damaged: {each.name} is a"
                f" {type(value).__name__}; use its weights only, with --init-from"
            )
        found[each.name] = default if value is None else value
    return TrainingState(**found)


def check_changes(saved: Config, given: Config, path: Path) -> str:
    """Compare the configuration of a checkpoint with the one to continue with.

    Args:
        saved: Of the checkpoint.
        given: The same with what the command line says.
        path: The checkpoint, for errors.

    Returns:
        The changes, such as "train.lr 0.001 -> 0.0005"; empty if there are none.

    Raises:
        UsageError: a setting or the classes cannot change; names both values.
    """
    if saved.classes != given.classes:
        raise UsageError(
            f"--resume {path}: its classes are {classes_text(saved.classes)}; those of {given.dataset.name}"
            f" are {classes_text(given.classes)}. The classes of a training cannot change: fine-tune with"
            f" --init-from {path}"
        )
    changes = differences(replace(saved, dataset=given.dataset), given)
    for name, (old, new) in changes.items():
        if name.startswith(FIXED):
            raise UsageError(
                f"--resume {path}: {name} is {old} in the checkpoint and cannot change to {new}; leave it"
                f" out, or start another training with --init-from {path}"
            )
    lines = [f"{name} {old} -> {new}" for name, (old, new) in changes.items()]
    before, after = saved.dataset, given.dataset
    if before != after:
        lines.append(f"dataset {before.train_annotations} -> {after.train_annotations}")
    return ", ".join(lines)


def classes_text(classes: Classes, limit: int = 6) -> str:
    """The first classes with their ids: `cat (1), dog (2) and 3 more`."""
    pairs = list(zip(classes.names, classes.category_ids, strict=True))
    more = f" and {len(pairs) - limit} more" if len(pairs) > limit else ""
    return ", ".join(f"{name} ({number})" for name, number in pairs[:limit]) + more


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], settings: TrainConfig, path: Path
) -> None:
    """Continue with the optimizer state of a checkpoint, but the weight decay and momentum of `settings`.

    Raises:
        YolactError: the state does not fit the optimizer.
    """
    with _damage_reported(path, f"optimizer does not fit {settings.optimizer}"):
        optimizer.load_state_dict(state)
        _check_shapes(optimizer)
        for group in optimizer.param_groups:
            group["weight_decay"] = settings.weight_decay
            if "betas" in group:
                group["betas"] = (settings.momentum, group["betas"][1])
            else:
                group["momentum"] = settings.momentum


def _check_shapes(optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError if a tensor of the state differs in shape from its parameter."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if name != "step" and isinstance(value, torch.Tensor) and value.shape != parameter.shape:
                raise ValueError(f"{name} of shape {tuple(value.shape)} for {tuple(parameter.shape)}")


def restore_scaler(scaler: torch.amp.GradScaler, state: dict[str, Any], path: Path) -> None:
    """Continue with the gradient scale of a checkpoint, if both runs use fp16.

    Raises:
        YolactError: the state is damaged.
    """
    if scaler.is_enabled() and state:
        with _damage_reported(path, "gradient scaler is damaged"):
            scaler.load_state_dict(state)


@contextmanager
def _damage_reported(path: Path, what: str) -> Iterator[None]:
    """Turn what PyTorch raises about a state that it cannot load into a YolactError."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise YolactError(
            f"{path}: the state of its {what} ({first_line(error)}); use its weights only, with --init-from"
        ) from error
