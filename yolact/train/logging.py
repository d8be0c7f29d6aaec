"""What a training run leaves to read: a JSON Lines file, a progress bar, log lines."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from yolact.config import TrainConfig
from yolact.losses import Losses
from yolact_runtime.errors import YolactError

log = logging.getLogger(__name__)

LOG_EVERY = 10


class TrainingLog:
    """The loss of every iteration: to a JSON Lines file, and to a progress bar or, now and then, the log."""

    def __init__(self, path: Path, start: int, settings: TrainConfig) -> None:
        self.path, self.start, self.total = path, start, settings.max_iterations
        self.file: TextIO | None = None
        self.last = time.perf_counter()
        self.smooth: float | None = None
        console = Console(stderr=True)
        self.quiet = not console.is_terminal
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=console,
            disable=self.quiet,
        )

    def __enter__(self) -> TrainingLog:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A run that starts over replaces the old log; one that is resumed continues it.
            self.file = self.path.open("a" if self.start else "w", encoding="utf-8")
        except OSError as error:
            raise YolactError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.bar.start()
        self.task = self.bar.add_task("", total=self.total, completed=self.start, words="")
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
        if self.file:
            self.file.close()

    def add(self, iteration: int, epoch: int, losses: Losses | None, rate: float, images: int) -> None:
        """Note one iteration; `losses` is None where its step was skipped."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        terms = {name: term.item() for name, term in losses._asdict().items()} if losses else {}
        total = sum(terms.values()) if terms else math.nan
        if terms:
            self.smooth = total if self.smooth is None else 0.95 * self.smooth + 0.05 * total
        record = {
            "iteration": iteration,
            "epoch": epoch,
            "lr": rate,
            "images_per_second": round(images / seconds, 3),
            "total": total if terms else None,
            **terms,
        }
        assert self.file is not None
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        words = f"loss {self.smooth or math.nan:.3f} {images / seconds:.1f} images/s"
        self.bar.update(self.task, completed=iteration + 1, words=words)
        if self.quiet and (iteration % LOG_EVERY == 0 or iteration + 1 == self.total):
            detail = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            log.info("[%d] %d/%d %s | %s | lr %.2e", epoch, iteration, self.total, words, detail, rate)
