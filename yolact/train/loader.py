"""Load the batches of each iteration, in other processes if the settings say so."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from yolact.config import TrainConfig
from yolact.data.batch import Batch, Sample, collate
from yolact.data.coco import CocoDataset
from yolact.data.image_pool import ImagePool
from yolact.data.workers import keep_freed_memory, start_method
from yolact.train.failures import ReplacingDataset, collate_replaced
from yolact.train.sampler import SharedBatches
from yolact_runtime.commandline import stop_signals

_PREFETCH = 2  # batches of each worker that are made in advance
GRACE_SECONDS = 60  # that a worker lives on after SIGTERM


def iterations(
    dataset: CocoDataset, batches: SharedBatches, settings: TrainConfig, device: torch.device
) -> Iterator[list[tuple[Batch, dict[int, str]]]]:
    """This process's batches of each iteration, with reasons for images that could not be read."""
    loader: DataLoader[Any] = DataLoader(
        ReplacingDataset(dataset),
        batch_sampler=batches,
        collate_fn=partial(collate_replaced, collate=_collate(dataset, batches, settings)),
        num_workers=settings.workers,
        prefetch_factor=_PREFETCH if settings.workers else None,
        worker_init_fn=_prepare_worker,
        pin_memory=device.type == "cuda",
        multiprocessing_context=start_method() if settings.workers else None,
    )
    loaded = iter(loader)
    for first in loaded:
        yield [first, *(next(loaded) for _ in range(settings.accumulate - 1))]


def _collate(
    dataset: CocoDataset, batches: SharedBatches, settings: TrainConfig
) -> Callable[[Sequence[Sample]], Batch]:
    """What makes batches of samples: an `ImagePool`, if there are workers and enough shared memory."""
    if settings.workers:
        # Of each worker, two batches wait to be read; the current iteration and the next hold others.
        places = _PREFETCH + settings.accumulate + 1
        with contextlib.suppress(RuntimeError):
            return ImagePool(settings.workers, places, batches.largest, *dataset.model.input_shape).collate
    return collate


def _prepare_worker(worker: int) -> None:
    """Prepare a process that loads images."""
    keep_freed_memory()
    _delay_signals()


def _delay_signals() -> None:
    """Keep a process that loads images alive while the training finishes its iteration and saves.

    Ctrl-C, SIGTERM and SIGHUP often go to a whole group of processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in stop_signals():
        signal.signal(number, lambda number, frame: signal.alarm(GRACE_SECONDS))
