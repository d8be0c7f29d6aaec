"""Write, name and find checkpoints; `yolact.weights.load` reads them."""

from __future__ import annotations

import logging
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from yolact.model import Yolact
from yolact.registry import config_name_of, position_of
from yolact.weights.files import read_torch
from yolact.weights.load import FORMAT
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import atomic_path, is_file, writing
from yolact_runtime.temporary import sweep

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
        written: Names of those in `folder` that were written before the run was resumed, oldest first. They
            come from a file that somebody else may have written: only files that hold `run` are taken.
        run: Identifies the run, in every checkpoint that it writes; empty for a new one.
    """

    def __init__(
        self, folder: Path, config: str, keep_last: int, written: Sequence[object] = (), run: str = ""
    ) -> None:
        self.folder, self.config, self.keep_last = folder, config, keep_last
        names = dict.fromkeys(name for name in written if isinstance(name, str))
        self.written = [name for name in names if run and self._is_own(name, run)]
        self.run = run or secrets.token_hex(16)

    def _is_own(self, name: str, run: str) -> bool:
        """Whether a checkpoint in the folder says that it is of this run."""
        path = self.folder / name
        if name != checkpoint_name(self.config, *position_of(name), "interrupt" in name) or path.is_symlink():
            return False
        try:
            content = read_torch(path, tensors=False)
        except YolactError:
            return False
        training = content.get("training") if isinstance(content, dict) else None
        return isinstance(training, dict) and training.get("run") == run

    def prepare(self, start: int) -> None:
        """Create the folder, see that files can be written to it, and remove what a killed process left.

        A checkpoint that is further than iteration `start` is reported: `--resume last` would select it.

        Raises:
            YolactError: it cannot be written to.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            sweep(self.folder)
        other = find_checkpoint("auto", self.folder, self.config)
        if other is not None and position_of(other)[1] > start:
            log.warning(
                "%s is further than this run, which starts at iteration %d: --resume last will continue from"
                " that file as long as it is there",
                *(other, start),
            )

    @property
    def last(self) -> Path | None:
        """The file written last; None if there is none."""
        return self.folder / self.written[-1] if self.written else None

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
        # All of them, also those deleted below: a process killed before that leaves them to the resumed one.
        save_checkpoint(path, model, epoch, iteration, {**training, "written": written, "run": self.run}, ema)
        kept = written[-self.keep_last :]
        for name in written[: len(written) - len(kept)]:
            (self.folder / name).unlink(missing_ok=True)
        if path.name not in self.written:  # the same again, with the result of its validation
            log.info("saved %s", path)
        self.written = kept
        return path


def find_checkpoint(resume: str, folder: Path, config: str | None = None) -> Path | None:
    """The file that `--resume` selects; None only for `auto` if there is none.

    Args:
        resume: A path; `last` (or the original's `latest`) for the checkpoint of `config` with the highest
            iteration; `interrupt` for the same among those of interruptions; `auto` for `last` or none.
        folder: Where checkpoints are saved.
        config: Name of the configuration; None if the folder has those of a single one.

    Raises:
        YolactError: there is none.
        UsageError: there are several configurations, and `config` is None.
    """
    if resume not in ("last", "latest", "interrupt", "auto"):
        if not is_file(resume):
            raise YolactError(f"--resume {resume}: no such file; give a path, last, interrupt or auto")
        return Path(resume)
    ending = "_interrupt.pth" if resume == "interrupt" else ".pth"
    files = [path for path in folder.glob(f"*{ending}") if is_file(path)]
    named = [(config_name_of(path), path) for path in files]
    found = [path for name, path in named if name is not None and config in (None, name)]
    names = sorted({name for name, path in named if name is not None and path in found})
    if not found and resume == "auto":
        return None
    if not found:
        raise YolactError(
            f"--resume {resume}: no {config or '<config>'}_<epoch>_<iteration>{ending} in {folder.absolute()}"
        )
    if len(names) > 1:
        raise UsageError(f"--resume {resume}: {folder} has checkpoints of {', '.join(names)}; give --config")
    return max(found, key=_age)


def list_checkpoints(folder: Path, latest: Path) -> list[Path]:
    """`latest`, and the checkpoints of its configuration in `folder` that come before it, latest first."""
    files = [path for path in folder.glob("*.pth") if config_name_of(path) == config_name_of(latest)]
    return [latest, *sorted((path for path in files if _age(path) < _age(latest)), key=_age, reverse=True)]


def _age(path: Path) -> tuple[int, int]:
    """Sorts checkpoints: of two at the same iteration, the newer one has been validated."""
    try:
        return position_of(path)[1], path.stat().st_mtime_ns
    except OSError:  # deleted since its folder was read
        return -1, 0
