"""The training loop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils.data import DataLoader

from yolact.config import Config, TrainConfig
from yolact.data.batch import Batch
from yolact.data.cached import CachedDataset
from yolact.data.coco import CocoDataset, find_missing_images
from yolact.data.workers import start_method
from yolact.losses import MultiBoxLoss
from yolact.model import Yolact
from yolact.model.backbone import zero_init_residual
from yolact.train.checkpoint import Checkpoints, save_checkpoint
from yolact.train.distributed import Processes
from yolact.train.failures import (
    ReplacingDataset,
    Unreadable,
    collate_replaced,
    dump_batch,
    explain,
)
from yolact.train.logging import TrainingLog
from yolact.train.sampler import EpochBatches, SharedBatches
from yolact.train.step import Ema, NetworkWithLoss, Step, build_optimizer, learning_rate, training_step
from yolact.train.validation import Validation, quality
from yolact.weights.load import Checkpoint, load_for_fine_tuning, load_pretrained_backbone, load_state
from yolact_runtime.errors import UsageError, YolactError

log = logging.getLogger(__name__)

# With fewer images, batch statistics are too noisy to train batch norm (the original's limit).
MIN_BATCH_FOR_BATCH_NORM = 6
GRACE_SECONDS = 60  # that a worker lives on after SIGTERM


class TrainingInterruptedError(YolactError):
    """Training was asked to stop, and saved its state."""

    exit_code = 130


def train(
    config: Config,
    folder: Path,
    device: torch.device,
    resume: Checkpoint | None = None,
    start: int = 0,
    init_from: Checkpoint | None = None,
    processes: Processes = Processes(),  # noqa: B008
) -> Path:
    """Train a network and return its last checkpoint.

    Every process of a training calls this; the first one writes. An iteration depends only on the checkpoint,
    the settings and its number, so a resumed run repeats one that was never stopped.

    Args:
        config: Everything about the model, the data and the schedule.
        folder: For checkpoints, and `<config>.jsonl` with every loss term of every iteration.
        device: Where to train.
        resume: Initial weights and, if the file has it, the state of the training.
        start: First iteration (0-based).
        init_from: Initial weights for fine-tuning; the classes may differ.
        processes: The processes that take part.

    Raises:
        YolactError: the data cannot be used, the loss is not finite, memory is short, or (once everything is
            saved) an image could not be read.
        TrainingInterruptedError: on Ctrl-C or SIGTERM; `<config>_<epoch>_<iteration>_interrupt.pth` is saved.
    """
    settings = config.train.scaled()
    if start >= settings.max_iterations:
        raise YolactError(
            f"nothing to train: --start-iter is {start} and train.max_iterations is {settings.max_iterations}"
            f" (scaled to batch size {settings.effective_batch})"
        )
    torch.manual_seed(settings.seed)
    training = _Training(config, folder, device, resume, start, init_from, processes)
    try:
        return training.run()
    except RuntimeError as error:
        known = explain(error, settings)
        if known is None:
            raise
        raise known from error


class _Training:
    """The state of a run; see `train` for the arguments."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        device: torch.device,
        resume: Checkpoint | None,
        start: int,
        init_from: Checkpoint | None,
        processes: Processes,
    ) -> None:
        settings = config.train.scaled()
        self.config, self.settings, self.folder = config, settings, folder
        self.device, self.processes, self.iteration = device, processes, start
        self.dataset = _dataset(config, settings, processes)
        self.validation = Validation(config, processes) if settings.validate_every else None

        self.layout = memory_format(device, settings)
        self.model = _initial_model(config, resume, init_from).to(device).to(memory_format=self.layout)
        log.info("%s", set_training_mode(self.model, settings, processes.count))
        if settings.sync_bn and processes.count > 1:
            if device.type == "cpu":
                raise UsageError("train.sync_bn = true; on CPUs PyTorch has no synchronised batch norm")
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # in place
        self.module = processes.wrap(NetworkWithLoss(self.model, MultiBoxLoss(config.loss), settings))
        self.optimizer = build_optimizer(self.model, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
        self.ema = Ema(self.model, settings.ema_decay) if settings.ema_decay else None
        state = (resume.training or {}) if resume else {}
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scaler.is_enabled() and state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
            if self.ema and resume and resume.ema is not None:
                load_state(self.ema.model, resume.ema, "the average of the checkpoint to resume")
                self.ema.updates = state["ema_updates"]
        self.best = state.get("best", -1.0)
        self.checkpoints = Checkpoints(folder, config.name, settings.keep_last, state.get("written", ()))
        self.batches = EpochBatches(
            len(self.dataset), settings.effective_batch, settings.seed, start, settings.max_iterations
        )
        self.unreadable = Unreadable(settings.max_unreadable)
        self.bad_steps = 0

    @property
    def averaged(self) -> Yolact | None:
        """The network with averaged weights, if there is one."""
        return self.ema.model if self.ema else None

    def run(self) -> Path:
        """Run every iteration; returns the last checkpoint."""
        settings, processes = self.settings, self.processes
        log.info(
            "training %s on %d images, batch %s, iterations %d to %d, %s",
            *(self.config.name, len(self.dataset), _batch_size_text(settings, processes)),
            *(self.iteration, settings.max_iterations, self.device),
        )
        path = Path()
        journal = TrainingLog(
            self.folder / f"{self.config.name}.jsonl", self.iteration, settings, processes.main
        )
        shared = SharedBatches(self.batches, settings.accumulate, processes.rank, processes.count)
        with _stop_signal() as stop, journal:
            for batches in _iterations(self.dataset, shared, settings, self.device):
                epoch = self.iteration // self.batches.epoch_length
                step, rate = self._step(batches)
                journal.add(self.iteration, epoch, step, rate, settings.effective_batch, self.device)
                self.iteration += 1
                last = self.iteration == settings.max_iterations
                if processes.any(bool(stop)) and not last:
                    self._interrupt()
                if self.validation and (last or self._ends_epoch(settings.validate_every)):
                    self._validate(self.validation, journal, epoch)
                if processes.main and (
                    last
                    or self.iteration % settings.save_every == 0
                    or self._ends_epoch(settings.save_epochs)
                ):
                    path = self._save()
        self._check_unreadable(path)
        return path

    def _step(self, batches: list[tuple[Batch, dict[int, str]]]) -> tuple[Step, float]:
        """One optimisation step; returns its losses and the learning rate.

        Raises:
            YolactError: too many losses in a row are not finite, or too many images unreadable.
        """
        settings, processes, iteration = self.settings, self.processes, self.iteration
        for _, failures in batches:
            self.unreadable.add(failures)
        rate = learning_rate(iteration, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Random numbers depend on the iteration only, so checkpoints need no generator state.
        torch.manual_seed((settings.seed * 1_000_003 + iteration) * processes.count + processes.rank)
        own = [batch.to(self.device, non_blocking=True, memory_format=self.layout) for batch, _ in batches]
        step = training_step(self.module, self.optimizer, self.scaler, own, settings.max_grad_norm, processes)
        if self.ema and step.applied:
            self.ema.update(self.model)
        self.bad_steps = 0 if step.healthy else self.bad_steps + 1
        if not step.healthy:
            log.warning("loss or gradient not finite at iteration %d: step skipped", iteration)
        if self.bad_steps == settings.max_bad_steps:
            self._give_up(own[step.suspect or 0], step, rate)
        return step, rate

    def _give_up(self, suspect: Batch, step: Step, rate: float) -> NoReturn:
        """Save the batch whose loss is not finite, and raise a YolactError."""
        rank = f"_rank{self.processes.rank}" if self.processes.rank else ""
        dump = self.folder / f"{self.config.name}_bad_batch{rank}.pt"
        if step.suspect is not None or self.processes.main:
            dump_batch(dump, self.model, suspect, self.iteration, step.losses, rate)
        terms = ", ".join(f"{name} {value:g}" for name, value in step.losses.items())
        raise YolactError(
            f"the loss was not finite {self.bad_steps} times in a row, last at iteration {self.iteration}"
            f" on images {suspect.image_ids} ({terms}; gradient {step.grad_norm:g}); lower train.lr"
            f" (now {rate:g}) or set train.max_grad_norm; analyse the batch with --debug-batch {dump}"
        )

    def _interrupt(self) -> NoReturn:
        """Save, and raise a TrainingInterruptedError."""
        path = self._save(interrupt=True) if self.processes.main else "interrupt"
        self.processes.any(False)  # no process ends before the checkpoint is saved
        raise TrainingInterruptedError(
            f"stopped at iteration {self.iteration}; continue with --resume {path}"
        )

    def _validate(self, validation: Validation, journal: TrainingLog, epoch: int) -> None:
        """Measure AP, and keep the best weights."""
        metrics = validation.run(self.averaged or self.model, self.device)
        set_training_mode(self.model, self.settings, self.processes.count)
        journal.add_validation(self.iteration - 1, epoch, metrics)
        if self.processes.main and quality(metrics) > self.best:
            self.best = quality(metrics)
            path = self.checkpoints.best
            save_checkpoint(path, self.model, epoch, self.iteration, None, self.averaged)
            log.info("saved %s", path)

    def _save(self, interrupt: bool = False) -> Path:
        """Write a checkpoint to resume from; returns its path."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema_updates": self.ema.updates if self.ema else 0,
            "best": self.best,
        }
        epoch = self.iteration // self.batches.epoch_length
        return self.checkpoints.save(self.model, epoch, self.iteration, state, self.averaged, interrupt)

    def _ends_epoch(self, every: int) -> bool:
        """Whether a multiple of `every` epochs is complete."""
        return every > 0 and self.iteration % (self.batches.epoch_length * every) == 0

    def _check_unreadable(self, path: Path) -> None:
        """Raise a YolactError if any process replaced an image that it could not read."""
        reasons = {
            index: reason
            for failures in self.processes.gather(self.unreadable.reasons)
            for index, reason in failures.items()
        }
        if reasons and self.processes.main:
            raise YolactError(
                f"training is complete ({path}), but {len(reasons)} of {len(self.dataset)} images could not"
                f" be read and were replaced, for example: {next(iter(reasons.values()))}"
            )


def _initial_model(config: Config, resume: Checkpoint | None, init_from: Checkpoint | None) -> Yolact:
    """The network with the weights that the run starts from."""
    model = Yolact(config)
    if resume is not None:
        load_state(model, resume.model, "the checkpoint to resume")
    elif init_from is not None:
        load_for_fine_tuning(model, init_from, "--init-from")
    elif config.train.init == "imagenet":
        load_pretrained_backbone(model)
    else:
        zero_init_residual(model)
    return model


def _dataset(config: Config, settings: TrainConfig, processes: Processes) -> CocoDataset:
    """The images to train on: all exist, and there are enough for every process."""
    data = config.dataset
    # Images to overfit must look the same every time.
    augment = None if settings.overfit else config.augment
    dataset = (CachedDataset if settings.cache_samples else CocoDataset)(
        data.train_images, data.train_annotations, config.model, config.classes, augment, settings.seed
    )
    if settings.overfit:
        dataset.records = dataset.records[: settings.overfit]
    missing = find_missing_images(dataset)
    if missing:
        raise YolactError(
            f"{len(missing)} of {len(dataset)} images of {data.train_annotations} are missing,"
            f" for example {missing[0]}"
        )
    parts = processes.count * settings.accumulate
    if parts > min(len(dataset), settings.effective_batch):
        raise UsageError(
            f"{processes.count} processes with train.accumulate {settings.accumulate} need {parts} images in"
            f" an iteration; there are {len(dataset)} images and train.batch_size is {settings.batch_size}"
        )
    return dataset


def memory_format(device: torch.device, settings: TrainConfig) -> torch.memory_format:
    """The memory layout in which convolutions are fastest.

    Channels last suits tensor cores and the bf16 units of CPUs; in float32 on CPUs it takes a fifth longer.
    """
    channels_last = device.type == "cuda" or settings.amp == "bf16"
    return torch.channels_last if channels_last else torch.contiguous_format


def set_training_mode(model: Yolact, settings: TrainConfig, processes: int = 1) -> str:
    """Set training mode; batch norm is frozen if settings or a small batch demand it. Returns a log line."""
    model.train()
    images = _batch_norm_batch(settings, processes)
    if freezes_batch_norm(settings, processes):
        model.freeze_batch_norm()
        return f"batch norm is frozen (a batch has {images} images; train.freeze_bn is {settings.freeze_bn})"
    return f"batch norm is trained on batches of {images} images"


def freezes_batch_norm(settings: TrainConfig, processes: int = 1) -> bool:
    """Whether batch norm is frozen. `auto` does not freeze it with random weights: they have no useful
    statistics, and explode without normalisation."""
    if settings.freeze_bn == "auto":
        return _batch_norm_batch(settings, processes) < MIN_BATCH_FOR_BATCH_NORM and settings.init != "random"
    return settings.freeze_bn == "always"


def _batch_norm_batch(settings: TrainConfig, processes: int) -> int:
    """Over how many images batch norm computes its statistics."""
    return settings.batch_size if settings.sync_bn else settings.batch_size // processes


def _batch_size_text(settings: TrainConfig, processes: Processes) -> str:
    text = str(settings.batch_size)
    if settings.accumulate > 1:
        text += f" x {settings.accumulate} accumulated"
    return text + (f" over {processes.count} processes" if processes.count > 1 else "")


def _iterations(
    dataset: CocoDataset, batches: SharedBatches, settings: TrainConfig, device: torch.device
) -> Iterator[list[tuple[Batch, dict[int, str]]]]:
    """This process's batches of each iteration, with reasons for images that could not be read."""
    loader: DataLoader[Any] = DataLoader(
        ReplacingDataset(dataset),
        batch_sampler=batches,
        collate_fn=collate_replaced,
        num_workers=settings.workers,
        worker_init_fn=_delay_signals,
        pin_memory=device.type == "cuda",
        multiprocessing_context=start_method() if settings.workers else None,
    )
    loaded = iter(loader)
    for first in loaded:
        yield [first, *(next(loaded) for _ in range(settings.accumulate - 1))]


def _delay_signals(worker: int) -> None:
    """Keep a worker alive while the loop finishes its iteration and saves.

    Ctrl-C and SIGTERM often go to a whole group of processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """Yield a list to which Ctrl-C or SIGTERM append their number; a second signal kills as usual."""
    received: list[int] = []
    old: dict[int, Any] = {}

    def handler(number: int, frame: object) -> None:
        received.append(number)
        for each, previous in old.items():
            signal.signal(each, previous)
        log.warning("stopping after this iteration (again: stop at once)")

    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            old[each] = signal.signal(each, handler)
    except ValueError:
        old.clear()  # not the main thread: the caller handles signals
    try:
        yield received
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
