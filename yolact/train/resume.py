"""What a resumed training may change, and the state that it continues from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from yolact.config import Classes, Config, TrainConfig
from yolact.settings import differences
from yolact.train.step import complete_moments
from yolact.weights.files import is_plain
from yolact.weights.load import Checkpoint
from yolact_runtime.errors import UsageError, YolactError, first_line
from yolact_runtime.typed import first_few, shown

MOST_UPDATES = 10**12
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
        run: Identifies the run; see `Checkpoints`.
    """

    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    ema_updates: int = 0
    best: float = -1.0
    awaits_validation: bool = False
    written: list[Any] = field(default_factory=list)
    run: str = ""


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
            raise _damaged(checkpoint.path, f"{each.name} is a {type(value).__name__}")
        found[each.name] = default if value is None else value
    state = TrainingState(**found)
    if not 0 <= state.ema_updates <= MOST_UPDATES:
        raise _damaged(checkpoint.path, f"ema_updates is not 0 to {MOST_UPDATES:,}")
    if not -1 <= state.best <= 1:
        raise _damaged(checkpoint.path, f"best is {state.best}, not -1 to 1")
    return state


def _damaged(path: Path, what: str) -> YolactError:
    return YolactError(
        f"{path}: the state of its training is damaged: {what}; use its weights only, with --init-from"
    )


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
    for name, (old, new) in differences(before, after, "dataset.").items():
        if name in ("dataset.crowd_as_instances", "dataset.other_classes"):
            lines.append(f"{name} {old} -> {new}")
    if before.train_annotations != after.train_annotations:
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
    """Continue with the moments of a checkpoint, and the settings of `optimizer`.

    Raises:
        YolactError: they do not fit the optimizer.
    """
    with _damage_reported(path, f"optimizer does not fit {settings.optimizer}"):
        own = optimizer.state_dict()["param_groups"]
        if [group["params"] for group in state["param_groups"]] != [group["params"] for group in own]:
            raise ValueError("it is of other parameters")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, moments in state["state"].items():
            if type(index) is not int or not 0 <= index < len(parameters):
                raise ValueError(f"it has moments of a parameter {shown(index)}")
            _check_moments(moments, _MOMENTS[settings.optimizer], parameters[index])
        optimizer.load_state_dict({"state": state["state"], "param_groups": own})
        complete_moments(optimizer)


# What each optimizer keeps for a parameter. SGD without momentum keeps None.
_MOMENTS = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}


def _check_moments(moments: dict[str, Any], names: set[str], parameter: torch.Tensor) -> None:
    """Raise a ValueError unless `moments` are finite tensors of the parameter's shape, with these names."""
    if moments.keys() != names:
        raise ValueError(f"moments {first_few(map(str, moments))} instead of {', '.join(sorted(names))}")
    for name, value in moments.items():
        if value is None and name == "momentum_buffer":
            continue
        if not (isinstance(value, torch.Tensor) and is_plain(value) and value.is_floating_point()):
            raise ValueError(f"{name} is no tensor of floats")
        shape = () if name == "step" else tuple(parameter.shape)
        if value.shape != shape:
            raise ValueError(f"{name} of shape {tuple(value.shape)} for {shape}")
        lowest = -math.inf if name in ("momentum_buffer", "exp_avg") else 0
        if not (value.isfinite() & (value >= lowest)).all():
            raise ValueError(f"{name} has values that are not finite, or below 0")


def restore_scaler(scaler: torch.amp.GradScaler, state: dict[str, Any], path: Path) -> None:
    """Continue with the gradient scale of a checkpoint, if both runs use fp16.

    Raises:
        YolactError: the state is damaged.
    """
    if scaler.is_enabled() and state:
        with _damage_reported(path, "gradient scaler is damaged"):
            scale, steps = float(state["scale"]), int(state["_growth_tracker"])
            if not (0 < scale < 1e30 and 0 <= steps < 1e9):
                raise ValueError(f"scale {scale}, {steps} steps")
            scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": steps})


@contextmanager
def _damage_reported(path: Path, what: str) -> Iterator[None]:
    """Turn what PyTorch raises about a state that it cannot load into a YolactError."""
    try:
        yield
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise YolactError(
            f"{path}: the state of its {what} ({first_line(error)}); use its weights only, with --init-from"
        ) from error
