"""Writing, naming and finding checkpoints. Reading them is `yolact.weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from yolact.model import Yolact
from yolact.registry import config_name_of, position_of
from yolact.weights import FORMAT
from yolact_runtime.errors import YolactError
from yolact_runtime.files import atomic_path


def checkpoint_name(config: str, epoch: int, iteration: int, interrupt: bool = False) -> str:
    """`<config>_<epoch>_<iteration>.pth`, the original's names."""
    return f"{config}_{epoch}_{iteration}{'_interrupt' if interrupt else ''}.pth"


def save_checkpoint(
    path: str | Path, model: Yolact, epoch: int, iteration: int, training: dict[str, Any] | None
) -> None:
    """Write weights, configuration, position and (for resuming) `training`, atomically.

    The file holds tensors, numbers, strings, lists and dicts only, so that `weights_only=True` opens it.
    """
    content = {
        "format": FORMAT,
        "config": model.config.to_dict(),
        "model": model.state_dict(),
        "training": training,
        "epoch": epoch,
        "iteration": iteration,
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def training_state(optimizer: torch.optim.Optimizer, device: torch.device) -> dict[str, Any]:
    """Everything besides the weights that the next iteration depends on."""
    state: dict[str, Any] = {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda_rng"] = torch.cuda.get_rng_state(device)
    return state


def restore_training_state(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """The inverse of `training_state`."""
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    if device.type == "cuda" and "cuda_rng" in state:
        torch.cuda.set_rng_state(state["cuda_rng"], device)


def find_checkpoint(resume: str, folder: Path, config: str) -> Path:
    """The file that `--resume` means.

    Args:
        resume: A path; `last` (or the original's `latest`) for the furthest checkpoint of `config` in
            `folder`; `interrupt` for the furthest one that an interruption left.
        folder: Where checkpoints are saved.
        config: Name of the configuration.

    Raises:
        YolactError: there is none.
    """
    if resume not in ("last", "latest", "interrupt"):
        if not Path(resume).is_file():
            raise YolactError(f"--resume {resume}: no such file; give a path, last or interrupt")
        return Path(resume)
    ending = "_interrupt.pth" if resume == "interrupt" else ".pth"
    found = [p for p in folder.glob(f"{config}_*{ending}") if config_name_of(p) == config]
    if not found:
        raise YolactError(f"--resume {resume}: no {config}_<epoch>_<iteration>{ending} in {folder}")
    # An interrupted save is a full one; of two at the same iteration either will do.
    return max(found, key=lambda p: position_of(p)[1])
