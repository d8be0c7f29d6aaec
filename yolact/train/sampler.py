"""Which images make up which iteration."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, image index), epoch after epoch, from any iteration on.

    The order of an epoch depends on (seed, epoch) alone, so a run that is resumed sees the images that
    it would have seen. The images left over at an epoch's end are skipped, as in the original, unless
    the data set is smaller than a batch.

    Args:
        images: Size of the data set.
        batch_size: Images an iteration.
        seed: Of the order.
        start: First iteration.
        stop: Iteration to stop before.
    """

    def __init__(self, images: int, batch_size: int, seed: int, start: int, stop: int) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.start, self.stop = start, stop

    @property
    def epoch_length(self) -> int:
        """Iterations an epoch."""
        return max(1, self.images // self.batch_size)

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: list[int] = []
        current = -1
        for iteration in range(self.start, self.stop):
            epoch, position = divmod(iteration, self.epoch_length)
            if epoch != current:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.images, generator=generator).tolist()
                current = epoch
            batch = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [(epoch, index) for index in batch]


class SharedBatches(Sampler[list[tuple[int, int]]]):
    """The part of every iteration's images that one process computes, one batch at a time.

    Together the processes see what one process would see. Parts may differ by an image.

    Args:
        batches: Images of each whole iteration.
        accumulate: Batches that an iteration is split into, one after the other.
        rank: This process.
        processes: How many there are.
    """

    def __init__(self, batches: EpochBatches, accumulate: int, rank: int = 0, processes: int = 1) -> None:
        self.batches, self.accumulate, self.rank, self.processes = batches, accumulate, rank, processes

    def __len__(self) -> int:
        return len(self.batches) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        parts = self.accumulate * self.processes
        for whole in self.batches:
            for part in range(self.accumulate):
                yield whole[part * self.processes + self.rank :: parts]
