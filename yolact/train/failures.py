"""Failures of a long training: unreadable images, losses that are not finite, too little memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch.utils.data import Dataset

from yolact.config import TrainConfig
from yolact.data.batch import Batch, Sample, collate
from yolact.data.coco import CocoDataset
from yolact_runtime.errors import YolactError, counted, first_line

log = logging.getLogger(__name__)


class ReplacingDataset(Dataset[tuple[Sample, dict[int, str]]]):
    """A dataset that replaces an unreadable image by the next readable one.

    An item is the sample, and the reason for each index that failed. The replacement depends only on the
    files, so runs are reproducible.
    """

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, dict[int, str]]:
        """The sample of (epoch, index), or of the next index that can be read.

        Raises:
            YolactError: there is none.
        """
        epoch, index = key
        failures: dict[int, str] = {}
        while len(failures) < len(self):
            try:
                return self.dataset[epoch, index], failures
            except YolactError as error:
                failures[index] = str(error)
                index = (index + 1) % len(self)
        raise YolactError(f"no image can be read: {failures[index]}")


def collate_replaced(
    items: Sequence[tuple[Sample, dict[int, str]]], collate: Callable[[Sequence[Sample]], Batch] = collate
) -> tuple[Batch, dict[int, str]]:
    """The batch of a `ReplacingDataset`'s items, and all their failures."""
    failures: dict[int, str] = {}
    for _, failed in items:
        failures.update(failed)
    return collate([sample for sample, _ in items]), failures


class Unreadable:
    """The images that could not be read: each is logged once; more than `limit` are an error."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reasons: dict[int, str] = {}

    def add(self, failures: dict[int, str]) -> None:
        """Add the failures of a batch.

        Raises:
            YolactError: there are too many.
        """
        for index, reason in failures.items():
            if index not in self.reasons:
                log.error("%s; the next image replaces it", reason)
                self.reasons[index] = reason
        if len(self.reasons) > self.limit:
            raise YolactError(
                f"{counted(len(self.reasons), 'image')} could not be read (train.max_unreadable is"
                f" {self.limit}); find them all with yolact-data check"
            )


def unreadable_text(replaced: Iterable[tuple[int, str]], images: int, missed: Mapping[str, str]) -> str:
    """The end of an error about images that could not be read; empty if there are none.

    Args:
        replaced: Indices and reasons of training images, of all processes.
        images: Number of training images.
        missed: Reasons by file name of validation images.
    """
    reasons = dict(replaced)
    texts = []
    if reasons:
        texts.append(
            f"{len(reasons)} of {counted(images, 'image')} could not be read and were replaced, for example:"
            f" {next(iter(reasons.values()))}"
        )
    if missed:
        texts.append(
            f"{counted(len(missed), 'validation image')} could not be read, for example:"
            f" {next(iter(missed.values()))}"
        )
    return "; ".join(texts)


def explain(error: RuntimeError, settings: TrainConfig) -> YolactError | None:
    """An error that says what to do about one of PyTorch's; None for an unknown one."""
    text, reason = str(error), first_line(error)
    if isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        return YolactError(
            f"out of memory ({reason}). Lower --batch-size (now {settings.batch_size}) and raise"
            f" --accumulate (now {settings.accumulate}) by the same factor; or give --amp bf16 (now"
            f" {settings.amp}); or use a configuration with a smaller input size or backbone"
        )
    if "DataLoader worker" in text:
        return YolactError(
            f"a process that loads images ended ({reason}): lower --workers (now {settings.workers})"
            " if memory is short, or use --workers 0 to see its error; continue with --resume last"
        )
    return None
