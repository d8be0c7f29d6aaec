"""Write, name and find checkpoints; `yolact.weights.load` reads them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from yolact.model import Yolact
from yolact.registry import config_name_of, position_of
from yolact.weights.load import FORMAT
from yolact_runtime.errors import YolactError
from yolact_runtime.files import atomic_path

log = logging.getLogger(__name__)


def checkpoint_name(config: str, epoch: int, iteration: int, interrupt: bool = False) -> str:
    """`<config>_<epoch>_<iteration>.pth`, the original's names."""
    return f"{config}_{epoch}_{iteration}{'_interrupt' if interrupt else ''}.pth"


def save_checkpoint(
    path: str | Path,
    model: Yolact,
    epoch: int,
    iteration: int,
    training: dict[str, Any] | None,
    ema: Yolact | None = None,
) -> None:
    """Write a checkpoint atomically, so that `torch.load(..., weights_only=True)` can read it.

    Args:
        path: The file.
        model: Its weights and configuration are saved.
        epoch, iteration: Position of the training.
        training: State to resume from: tensors, numbers, strings, lists and dicts only.
        ema: The averaged network, which `load_model` opens instead of `model`.

    Raises:
        YolactError: it cannot be written; the old file is unchanged.
    """
    content = {
        "format": FORMAT,
        "config": model.config.to_dict(),
        "model": model.state_dict(),
        "training": training,
        "epoch": epoch,
        "iteration": iteration,
    }
    if ema is not None:
        content["ema"] = ema.state_dict()
    write_torch(content, path)


def write_torch(content: Any, path: str | Path) -> None:
    """`torch.save`, atomically.

    Raises:
        YolactError: the folder cannot be written to, or the disk is full.
    """
    with atomic_path(path) as temporary:
        try:
            # A Python file reports the reason of an error; torch's own writer does not.
            with temporary.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            text = getattr(reason, "strerror", None) or str(reason).splitlines()[0]
            raise YolactError(f"cannot write {path}: {text}") from error


class Checkpoints:
    """The checkpoints of a run in its folder; the oldest are deleted.

    Args:
        folder: Where they are.
        config: Name of the configuration.
        keep_last: Number to keep; 0: all. Only files that this run wrote are deleted.
        written: Names of those written before the run was resumed, oldest first.
    """

    def __init__(self, folder: Path, config: str, keep_last: int, written: Sequence[str] = ()) -> None:
        self.folder, self.config, self.keep_last = folder, config, keep_last
        self.written = list(written)
        # Temporary files of a killed process.
        for path in folder.glob(f".{config}_*.pth"):
            path.unlink(missing_ok=True)

    @property
    def best(self) -> Path:
        """The file of the weights with the highest validation AP."""
        return self.folder / f"{self.config}_best.pth"

    def save(
        self,
        model: Yolact,
        epoch: int,
        iteration: int,
        training: dict[str, Any],
        ema: Yolact | None,
        interrupt: bool = False,
    ) -> Path:
        """Write one and return its path; see `save_checkpoint`."""
        path = self.folder / checkpoint_name(self.config, epoch, iteration, interrupt)
        written = [name for name in self.written if name != path.name] + [path.name]
        kept = written[-self.keep_last :]
        save_checkpoint(path, model, epoch, iteration, {**training, "written": kept}, ema)
        for name in written[: len(written) - len(kept)]:
            (self.folder / name).unlink(missing_ok=True)
        self.written = kept
        log.info("saved %s", path)
        return path


def find_checkpoint(resume: str, folder: Path, config: str) -> Path | None:
    """The file that `--resume` selects; None only for `auto` if there is none.

    Args:
        resume: A path; `last` (or the original's `latest`) for the checkpoint of `config` with the highest
            iteration; `interrupt` for the same among those of interruptions; `auto` for `last` or none.
        folder: Where checkpoints are saved.
        config: Name of the configuration.

    Raises:
        YolactError: there is none.
    """
    if resume not in ("last", "latest", "interrupt", "auto"):
        if not Path(resume).is_file():
            raise YolactError(f"--resume {resume}: no such file; give a path, last, interrupt or auto")
        return Path(resume)
    ending = "_interrupt.pth" if resume == "interrupt" else ".pth"
    found = [p for p in folder.glob(f"{config}_*{ending}") if config_name_of(p) == config]
    if not found and resume == "auto":
        return None
    if not found:
        raise YolactError(f"--resume {resume}: no {config}_<epoch>_<iteration>{ending} in {folder}")
    # Checkpoints of interruptions are complete: of two at the same iteration either will do.
    return max(found, key=lambda p: position_of(p)[1])
