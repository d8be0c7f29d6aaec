"""The logs of a training run: a JSON Lines file, a progress bar, log lines, TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

import cv2
import numpy as np
import torch

from yolact.config import TrainConfig
from yolact.train.step import Step
from yolact_runtime.commandline import error_console, progress_bar
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.files import atomic_path
from yolact_runtime.packages import imports_failed
from yolact_runtime.untrusted import parse_json

log = logging.getLogger(__name__)

T = TypeVar("T")

LOG_EVERY = 10
MAX_LINE = 1 << 20  # bytes


class TrainingLog:
    """Writes iterations and validations to a JSON Lines file, to TensorBoard if `settings` say so, and to a
    progress bar or, without a terminal, the log.

    Args:
        path: The JSON Lines file. A new run replaces it; a resumed one continues it at `start`.
        start: First iteration.
        settings: Settings of the training.
        enabled: False for a process that does not write.
        validated: False if the validation at `start` will be repeated.
    """

    def __init__(
        self, path: Path, start: int, settings: TrainConfig, enabled: bool = True, validated: bool = True
    ) -> None:
        self.path, self.start, self.total, self.enabled = path, start, settings.max_iterations, enabled
        self.validated = validated
        self.tensorboard = settings.tensorboard
        self.file: TextIO | None = None
        self.writer: Any = None
        self.last = time.perf_counter()
        self.waited = 0.0  # seconds, in this iteration
        self.smooth: float | None = None
        self.quiet = not error_console().is_terminal
        self.bar = progress_bar(
            "{task.fields[status]}", quiet=not (enabled and log.isEnabledFor(logging.INFO))
        )

    def __enter__(self) -> TrainingLog:
        """Open the files and start the progress bar."""
        if not self.enabled:
            return self
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.start and self.path.is_file():
                self._cut()
            self.file = self.path.open("a" if self.start else "w", encoding="utf-8")
        except OSError as error:
            raise YolactError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise imports_failed(error, "train.tensorboard") from error
            self.writer = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self.start)
        self.bar.start()
        self.task = self.bar.add_task("training", total=self.total, completed=self.start, status="")
        self.last = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
        if self.writer:
            self.writer.close()
        if self.file:
            self.file.close()

    def _cut(self) -> None:
        """Remove the lines that a killed run wrote after the checkpoint it is resumed from."""
        others = 0
        with self.path.open("rb") as old, atomic_path(self.path) as temporary, temporary.open("wb") as new:
            while line := old.readline(MAX_LINE):
                if not line.endswith(b"\n"):
                    if len(line) == MAX_LINE:
                        raise YolactError(f"{self.path} is no log of a training: a line is longer than 1 MB")
                    break  # of a killed run
                stays = self._stays(line)
                others += stays is None
                if stays is not False:
                    new.write(line)
        if others:
            log.warning("%s: %s not of a training; they stay", self.path, counted(others, "line"))

    def _stays(self, line: bytes) -> bool | None:
        """Whether a line is of the time before `start`; None if it is not of a training."""
        try:
            record = parse_json(line)
            number, validation = record["iteration"], "validation" in record
        except (ValueError, KeyError, TypeError):
            return None
        if type(number) is not int:
            return None
        return number < self.start and (self.validated or not (validation and number == self.start - 1))

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time until each is there counts as waiting for data."""
        start = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def add(
        self, iteration: int, epoch: int, step: Step, rate: float, images: int, device: torch.device
    ) -> None:
        """Log one iteration on `images` images; `total` is None if its step was skipped."""
        if not self.enabled:
            return
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        wait, self.waited = self.waited / seconds, 0.0
        total = sum(step.losses.values())
        if step.applied:
            self.smooth = total if self.smooth is None else 0.95 * self.smooth + 0.05 * total
        record = {
            "iteration": iteration,
            "epoch": epoch,
            "lr": rate,
            "images_per_second": round(images / seconds, 3),
            "data_wait": round(wait, 3),
            "memory_mib": memory_mib(device),
            "total": total if step.applied else None,
            **{name: value if math.isfinite(value) else None for name, value in step.losses.items()},
            "grad_norm": step.grad_norm if math.isfinite(step.grad_norm) else None,
        }
        self._write(record, iteration)
        status = (
            f"loss {self.smooth or math.nan:.3f} {images / seconds:.1f} images/s, {wait:.0%} waiting for data"
        )
        self.bar.update(self.task, completed=iteration + 1, status=status)
        if self.quiet and (iteration % LOG_EVERY == 0 or iteration + 1 == self.total):
            detail = " ".join(f"{name} {value:.3f}" for name, value in step.losses.items())
            log.info("[%d] %d/%d %s | %s | lr %.2e", epoch, iteration, self.total, status, detail, rate)

    def add_validation(self, iteration: int, epoch: int, metrics: dict[str, float | None]) -> None:
        """Log AP values of the weights after `iteration`."""
        if not self.enabled:
            return
        self._write({"iteration": iteration, "epoch": epoch, "validation": metrics}, iteration)
        text = ", ".join(f"{k.replace('_', ' ')} {100 * v:.2f}" for k, v in metrics.items() if v is not None)
        log.info("[%d] %d/%d validation: %s", epoch, iteration, self.total, text or "no annotations")
        self.last = time.perf_counter()

    def add_picture(self, name: str, iteration: int, picture: np.ndarray) -> None:
        """Write a picture (H, W, 3), uint8 BGR, to the folder `pictures` of the log's, and to TensorBoard."""
        if not self.enabled:
            return
        path = self.path.parent / "pictures" / f"{self.path.stem}_{name}_{iteration}.jpg"
        with atomic_path(path) as temporary:
            temporary.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
        if self.writer:
            self.writer.add_image(name, picture[..., ::-1].copy(), iteration, dataformats="HWC")
        self.last = time.perf_counter()

    def _write(self, record: dict[str, Any], iteration: int) -> None:
        """Write a line of the file, and its numbers to TensorBoard."""
        assert self.file is not None
        try:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        except OSError as error:
            raise YolactError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self.writer:
            values = {**record, **(record.get("validation") or {})}
            for name, value in values.items():
                if isinstance(value, float):
                    self.writer.add_scalar(name, value, iteration)


def memory_mib(device: torch.device) -> int | None:
    """Peak memory of this process in MiB: of the GPU if `device` is one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


def batch_size_text(settings: TrainConfig, processes: int) -> str:
    """The images of a step, such as "8 x 2 accumulated over 4 processes"."""
    text = str(settings.batch_size)
    if settings.accumulate > 1:
        text += f" x {settings.accumulate} accumulated"
    return text + (f" over {processes} processes" if processes > 1 else "")
