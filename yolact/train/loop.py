"""The training loop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from yolact.config import Config, TrainConfig
from yolact.data.coco import Batch, CocoDataset, collate, find_missing_images
from yolact.losses import Losses, MultiBoxLoss
from yolact.model import Yolact
from yolact.train.checkpoint import (
    checkpoint_name,
    restore_training_state,
    save_checkpoint,
    training_state,
)
from yolact.train.logging import TrainingLog
from yolact.train.sampler import EpochBatches
from yolact.train.schedule import learning_rate
from yolact.weights import Checkpoint, load_pretrained_backbone, load_state
from yolact_runtime.errors import YolactError

log = logging.getLogger(__name__)

# Below this, statistics of a batch are too noisy to train batch norm with (the original's limit).
MIN_BATCH_FOR_BATCH_NORM = 6
MAX_BAD_STEPS = 10


class TrainingInterruptedError(YolactError):
    """Training was asked to stop; it saved where it was."""

    exit_code = 130


def train(
    config: Config, folder: Path, device: torch.device, resume: Checkpoint | None = None, start: int = 0
) -> Path:
    """Train a network and return its last checkpoint.

    Args:
        config: Everything about the model, the data and the schedule.
        folder: For checkpoints, and `<config>.jsonl` with every loss term of every iteration.
        device: Where to train.
        resume: Weights to begin with, and, where the file holds it, the state of the training.
        start: Iteration to begin at (0-based).

    Raises:
        YolactError: the data cannot be used, or the loss stays infinite.
        TrainingInterruptedError: on Ctrl-C or SIGTERM; `<config>_<epoch>_<iteration>_interrupt.pth` is saved.
    """
    settings = config.train.scaled()
    torch.manual_seed(settings.seed)
    dataset = CocoDataset(
        Path(config.dataset.train_images),
        Path(config.dataset.train_annotations),
        config.model,
        config.classes,
        config.augment,
        settings.seed,
    )
    missing = find_missing_images(dataset)
    if missing:
        raise YolactError(
            f"{len(missing)} of {len(dataset)} images of {config.dataset.train_annotations} are missing,"
            f" such as {missing[0]}"
        )
    if len(dataset) == 0:
        raise YolactError(f"{config.dataset.train_annotations} lists no images")

    model = Yolact(config)
    if resume is not None:
        load_state(model, resume.model, "the checkpoint to resume")
    elif settings.init == "imagenet":
        load_pretrained_backbone(model)
    # The layout that convolutions are fastest in, on CPUs as on GPUs.
    model.to(device, memory_format=torch.channels_last)
    criterion = MultiBoxLoss(config.loss)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    if resume is not None and resume.training is not None:
        restore_training_state(resume.training, optimizer, device)

    batches = EpochBatches(len(dataset), settings.batch_size, settings.seed, start, settings.max_iterations)
    set_training_mode(model, settings)
    iteration = start

    def save(interrupt: bool = False) -> Path:
        epoch = iteration // batches.epoch_length
        path = folder / checkpoint_name(config.name, epoch, iteration, interrupt)
        save_checkpoint(path, model, epoch, iteration, training_state(optimizer, device))
        return path

    bad_steps = 0
    path = None
    log.info(
        "training %s on %d images, batch %d, iterations %d to %d, %s",
        config.name, len(dataset), settings.batch_size, start, settings.max_iterations, device,
    )  # fmt: skip
    with _stop_signal() as stop, TrainingLog(folder / f"{config.name}.jsonl", start, settings) as journal:
        for batch in _loader(dataset, batches, settings, device):
            rate = learning_rate(iteration, settings)
            losses = training_step(
                model, criterion, optimizer, batch.to(device, non_blocking=True), rate, settings
            )
            bad_steps = bad_steps + 1 if losses is None else 0
            if bad_steps == MAX_BAD_STEPS:
                raise YolactError(
                    f"the loss was not finite {bad_steps} times in a row, last at iteration {iteration}"
                    f" on images {batch.image_ids}; lower train.lr (now {rate:g}) or set train.max_grad_norm"
                )
            journal.add(iteration, iteration // batches.epoch_length, losses, rate, len(batch))
            iteration += 1
            if stop:
                path = save(interrupt=True)
                raise TrainingInterruptedError(
                    f"stopped at iteration {iteration}; continue with --resume {path}"
                )
            if iteration % settings.save_every == 0 or iteration == settings.max_iterations:
                path = save()
                log.info("saved %s", path)
    if path is None:
        raise YolactError(
            f"nothing to train: --start-iter is {start} and train.max_iterations is {settings.max_iterations}"
            f" (scaled to batch size {settings.batch_size})"
        )
    return path


def training_step(
    model: Yolact,
    criterion: MultiBoxLoss,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    rate: float,
    settings: TrainConfig,
) -> Losses | None:
    """One optimisation step; None, and no change, where the loss is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    output, semantic = model.forward_train(batch.images.contiguous(memory_format=torch.channels_last))
    losses = criterion(model, output, semantic, batch.targets)
    if not torch.isfinite(losses.total):
        log.warning("loss not finite on images %s: step skipped", batch.image_ids)
        return None
    losses.total.backward()
    if settings.max_grad_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    return losses


def set_training_mode(model: Yolact, settings: TrainConfig) -> None:
    """Training mode, with batch norm frozen where the settings or a small batch ask for it."""
    model.train()
    small = settings.batch_size < MIN_BATCH_FOR_BATCH_NORM
    if settings.freeze_bn == "always" or (settings.freeze_bn == "auto" and small):
        log.info(
            "batch norm is frozen (batch size %d; train.freeze_bn is %s)",
            settings.batch_size,
            settings.freeze_bn,
        )
        model.freeze_batch_norm()


def _loader(
    dataset: CocoDataset, batches: EpochBatches, settings: TrainConfig, device: torch.device
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=settings.workers,
        worker_init_fn=_ignore_interrupts,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork" if settings.workers else None,
    )


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C goes to every process of a terminal; the loop decides when its workers stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
