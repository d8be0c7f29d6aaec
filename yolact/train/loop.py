"""The training loop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from yolact.config import Config, TrainConfig
from yolact.data.batch import Batch
from yolact.data.cached import CachedDataset
from yolact.data.coco import CocoDataset, find_missing_images
from yolact.losses import MultiBoxLoss
from yolact.model import Yolact
from yolact.model.backbone import zero_init_residual
from yolact.train.checkpoint import Checkpoints, save_checkpoint
from yolact.train.distributed import Processes
from yolact.train.ema import Ema
from yolact.train.failures import (
    ReplacingDataset,
    Unreadable,
    collate_replaced,
    dump_batch,
    explain,
)
from yolact.train.logging import TrainingLog
from yolact.train.sampler import EpochBatches, SharedBatches
from yolact.train.step import NetworkWithLoss, build_optimizer, learning_rate, training_step
from yolact.train.validation import Validation, quality
from yolact.weights.load import Checkpoint, load_for_fine_tuning, load_pretrained_backbone, load_state
from yolact_runtime.errors import UsageError, YolactError

log = logging.getLogger(__name__)

# Below this, statistics of a batch are too noisy to train batch norm with (the original's limit).
MIN_BATCH_FOR_BATCH_NORM = 6
GRACE_SECONDS = 60


class TrainingInterruptedError(YolactError):
    """Training was asked to stop; it saved where it was."""

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

    Every process of a training calls this; the first one writes. What happens in an iteration depends on
    the checkpoint, the settings and the iteration's number alone, so that a resumed run repeats one that
    was never stopped.

    Args:
        config: Everything about the model, the data and the schedule.
        folder: For checkpoints, and `<config>.jsonl` with every loss term of every iteration.
        device: Where to train.
        resume: Weights to begin with, and, where the file holds it, the state of the training.
        start: Iteration to begin at (0-based).
        init_from: Weights to begin with instead, which may be for other classes.
        processes: Who takes part.

    Raises:
        YolactError: the data cannot be used, the loss stays infinite, memory is short, or (once all is saved)
            an image could not be read.
        TrainingInterruptedError: on Ctrl-C or SIGTERM; `<config>_<epoch>_<iteration>_interrupt.pth` is saved.
    """
    settings = config.train.scaled()
    if start >= settings.max_iterations:
        raise YolactError(
            f"nothing to train: --start-iter is {start} and train.max_iterations is {settings.max_iterations}"
            f" (scaled to batch size {settings.effective_batch})"
        )
    torch.manual_seed(settings.seed)
    dataset = _dataset(config, settings, processes)
    validation = Validation(config, processes) if settings.validate_every else None

    model = Yolact(config)
    if resume is not None:
        load_state(model, resume.model, "the checkpoint to resume")
    elif init_from is not None:
        load_for_fine_tuning(model, init_from, "--init-from")
    elif settings.init == "imagenet":
        load_pretrained_backbone(model)
    else:
        zero_init_residual(model)
    layout = memory_format(device, settings)
    model.to(device).to(memory_format=layout)
    log.info("%s", set_training_mode(model, settings, processes.count))
    if settings.sync_bn and processes.count > 1:
        if device.type == "cpu":
            raise UsageError("train.sync_bn = true; on CPUs PyTorch has no synchronised batch norm")
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place: all of it is below the top

    module = processes.wrap(NetworkWithLoss(model, MultiBoxLoss(config.loss), settings))
    optimizer = build_optimizer(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
    ema = Ema(model, settings.ema_decay) if settings.ema_decay else None
    state = resume.training if resume is not None and resume.training is not None else {}
    if state:
        optimizer.load_state_dict(state["optimizer"])
        if scaler.is_enabled() and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        if ema is not None and resume is not None and resume.ema is not None:
            load_state(ema.model, resume.ema, "the average of the checkpoint to resume")
            ema.updates = state["ema_updates"]
    best = state.get("best", -1.0)
    checkpoints = Checkpoints(folder, config.name, settings.keep_last, state.get("written", ()))

    batches = EpochBatches(
        len(dataset), settings.effective_batch, settings.seed, start, settings.max_iterations
    )
    shared = SharedBatches(batches, settings.accumulate, processes.rank, processes.count)
    unreadable = Unreadable(settings.max_unreadable)
    epoch_length = batches.epoch_length
    iteration = start

    def save(interrupt: bool = False) -> Path:
        training = {
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "ema_updates": ema.updates if ema else 0,
            "best": best,
        }
        average = ema.model if ema else None
        return checkpoints.save(model, iteration // epoch_length, iteration, training, average, interrupt)

    bad_steps = 0
    path = Path()
    log.info(
        "training %s on %d images, batch %s, iterations %d to %d, %s",
        config.name, len(dataset), _batch_words(settings, processes), start, settings.max_iterations, device,
    )  # fmt: skip
    journal = TrainingLog(folder / f"{config.name}.jsonl", start, settings, processes.main)
    try:
        with _stop_signal() as stop, journal:
            for parts in _iterations(dataset, shared, settings, device):
                epoch = iteration // epoch_length
                for _, failures in parts:
                    unreadable.add(failures)
                rate = learning_rate(iteration, settings)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                # Draws depend on the iteration alone, and no checkpoint need hold a generator's state.
                torch.manual_seed((settings.seed * 1_000_003 + iteration) * processes.count + processes.rank)
                own = [batch.to(device, non_blocking=True, memory_format=layout) for batch, _ in parts]
                step = training_step(module, optimizer, scaler, own, settings.max_grad_norm, processes)
                if ema and step.applied:
                    ema.update(model)

                bad_steps = 0 if step.healthy else bad_steps + 1
                if not step.healthy:
                    log.warning("loss or gradient not finite at iteration %d: step skipped", iteration)
                if bad_steps == settings.max_bad_steps:
                    rank = f"_rank{processes.rank}" if processes.rank else ""
                    dump = folder / f"{config.name}_bad_batch{rank}.pt"
                    suspect = own[step.suspect or 0]
                    if step.suspect is not None or processes.main:
                        dump_batch(dump, model, suspect, iteration, step.losses, rate)
                    terms = ", ".join(f"{name} {value:g}" for name, value in step.losses.items())
                    raise YolactError(
                        f"the loss was not finite {bad_steps} times in a row, last at iteration {iteration}"
                        f" on images {suspect.image_ids} ({terms}; gradient {step.grad_norm:g}); lower"
                        f" train.lr (now {rate:g}) or set train.max_grad_norm; look closer with"
                        f" --debug-batch {dump}"
                    )
                journal.add(iteration, epoch, step, rate, settings.effective_batch, device)

                iteration += 1
                last = iteration == settings.max_iterations
                if processes.any(bool(stop)) and not last:
                    if processes.main:
                        path = save(interrupt=True)
                    processes.any(False)  # nobody ends before all is saved
                    raise TrainingInterruptedError(
                        f"stopped at iteration {iteration}; continue with --resume"
                        f" {path if processes.main else 'interrupt'}"
                    )
                if validation and (last or _ends_epoch(iteration, epoch_length, settings.validate_every)):
                    metrics = validation.run(ema.model if ema else model, device)
                    set_training_mode(model, settings, processes.count)
                    journal.add_validation(iteration - 1, epoch, metrics)
                    if processes.main and quality(metrics) > best:
                        best = quality(metrics)
                        save_checkpoint(
                            checkpoints.best, model, epoch, iteration, None, ema.model if ema else None
                        )
                        log.info("saved %s", checkpoints.best)
                if processes.main and (
                    last
                    or iteration % settings.save_every == 0
                    or _ends_epoch(iteration, epoch_length, settings.save_epochs)
                ):
                    path = save()
    except RuntimeError as error:
        known = explain(error, settings)
        if known is None:
            raise
        raise known from error

    failed = {
        index: reason for part in processes.gather(unreadable.reasons) for index, reason in part.items()
    }
    if failed and processes.main:
        raise YolactError(
            f"training is complete ({path}), but {len(failed)} of {len(dataset)} images could not be read and"
            f" were replaced, such as: {next(iter(failed.values()))}"
        )
    return path


def _dataset(config: Config, settings: TrainConfig, processes: Processes) -> CocoDataset:
    """The images to train on; all are there, and enough for every process to have some."""
    data = config.dataset
    # What is to be learnt by heart must look the same every time.
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
            f" such as {missing[0]}"
        )
    parts = processes.count * settings.accumulate
    if parts > min(len(dataset), settings.effective_batch):
        raise UsageError(
            f"{processes.count} processes with train.accumulate {settings.accumulate} need {parts} images an"
            f" iteration; there are {len(dataset)} images and train.batch_size is {settings.batch_size}"
        )
    return dataset


def memory_format(device: torch.device, settings: TrainConfig) -> torch.memory_format:
    """The layout of images and weights that convolutions are fastest in.

    Channels last suits tensor cores and the bf16 units of CPUs; in float32 on CPUs it takes a fifth longer.
    """
    units = device.type == "cuda" or settings.amp == "bf16"
    return torch.channels_last if units else torch.contiguous_format


def set_training_mode(model: Yolact, settings: TrainConfig, processes: int = 1) -> str:
    """Training mode, with batch norm frozen where the settings or a small batch ask for it; says which."""
    model.train()
    images = _images_at_once(settings, processes)
    if freezes_batch_norm(settings, processes):
        model.freeze_batch_norm()
        return f"batch norm is frozen ({images} images at once; train.freeze_bn is {settings.freeze_bn})"
    return f"batch norm is trained on {images} images at once"


def freezes_batch_norm(settings: TrainConfig, processes: int = 1) -> bool:
    """Whether batch norm stays as it is. Random weights have no statistics worth freezing, and explode
    without normalisation."""
    if settings.freeze_bn == "auto":
        return _images_at_once(settings, processes) < MIN_BATCH_FOR_BATCH_NORM and settings.init != "random"
    return settings.freeze_bn == "always"


def _images_at_once(settings: TrainConfig, processes: int) -> int:
    return settings.batch_size if settings.sync_bn else settings.batch_size // processes


def _ends_epoch(iteration: int, epoch_length: int, every: int) -> bool:
    """Whether `iteration` iterations are a multiple of `every` epochs."""
    return every > 0 and iteration % (epoch_length * every) == 0


def _batch_words(settings: TrainConfig, processes: Processes) -> str:
    words = str(settings.batch_size)
    if settings.accumulate > 1:
        words += f" x {settings.accumulate} accumulated"
    return words + (f" over {processes.count} processes" if processes.count > 1 else "")


def _iterations(
    dataset: CocoDataset, batches: SharedBatches, settings: TrainConfig, device: torch.device
) -> Iterator[list[tuple[Batch, dict[int, str]]]]:
    """This process's batches of each iteration, with the reasons of images that could not be read."""
    loader: DataLoader[Any] = DataLoader(
        ReplacingDataset(dataset),
        batch_sampler=batches,
        collate_fn=collate_replaced,
        num_workers=settings.workers,
        worker_init_fn=_outlive_signals,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork" if settings.workers else None,
    )
    parts = iter(loader)
    for first in parts:
        yield [first, *(next(parts) for _ in range(settings.accumulate - 1))]


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM often go to a whole group of processes. The loop decides when its workers stop: they
    outlive a SIGTERM for as long as it may take to finish an iteration and to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that holds the signal once Ctrl-C or SIGTERM came; a second one kills as usual."""
    received: list[int] = []
    old: dict[int, Any] = {}

    def handler(number: int, frame: object) -> None:
        received.append(number)
        for each, previous in old.items():
            signal.signal(each, previous)
        log.warning("stopping after this iteration (again to stop at once)")

    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            old[each] = signal.signal(each, handler)
    except ValueError:
        old.clear()  # not the main thread: whoever runs us handles signals
    try:
        yield received
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
