"""What a resumed training may change, and the state that it continues from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from yolact.config import Classes, Config, TrainConfig
from yolact.settings import differences
from yolact.weights.load import Checkpoint
from yolact_runtime.errors import UsageError, YolactError, first_line

# The state of the training belongs to these; all other settings may change from one run to the next.
FIXED = ("name", "model.", "train.optimizer", "train.init", "train.seed", "train.val_fraction")
# The state of a checkpoint whose validation was due, but not finished, when it was saved.
AWAITS_VALIDATION = "awaits_validation"


def awaits_validation(checkpoint: Checkpoint | None) -> bool:
    """Whether the validation at this checkpoint has still to be done."""
    return bool(checkpoint and (checkpoint.training or {}).get(AWAITS_VALIDATION))


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
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], settings: TrainConfig, source: str
) -> None:
    """Continue with the optimizer state of a checkpoint, but the weight decay and momentum of `settings`.

    Raises:
        YolactError: the state does not fit the optimizer.
    """
    try:
        optimizer.load_state_dict(dict(state))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise YolactError(
            f"{source}: the state of its optimizer does not fit {settings.optimizer}: {first_line(error)};"
            " use its weights only, with --init-from"
        ) from error
    for group in optimizer.param_groups:
        group["weight_decay"] = settings.weight_decay
        if "betas" in group:
            group["betas"] = (settings.momentum, group["betas"][1])
        else:
            group["momentum"] = settings.momentum
