"""The images of every iteration."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, image index), epoch after epoch, from any iteration on.

    The order of an epoch depends only on (seed, epoch), so a resumed run sees the same images. The last ones
    of an epoch, fewer than a batch, are skipped as in the original, unless there are no others.

    Args:
        images: Size of the dataset.
        batch_size: Images in an iteration.
        seed: Random seed.
        start: First iteration.
        stop: Iteration to stop before.
    """

    def __init__(self, images: int, batch_size: int, seed: int, start: int, stop: int) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.start, self.stop = start, stop

    @property
    def epoch_length(self) -> int:
        """Iterations in an epoch."""
        return max(1, self.images // self.batch_size)

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches from `start` to `stop`."""
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
    """One process's share of every iteration, one batch at a time.

    Together the processes see the images that a single one would. Shares may differ by an image.

    Args:
        batches: The images of each iteration.
        accumulate: Number of batches that an iteration is split into.
        rank: Index of this process.
        processes: Number of processes.
    """

    def __init__(self, batches: EpochBatches, accumulate: int, rank: int = 0, processes: int = 1) -> None:
        self.batches, self.accumulate, self.rank, self.processes = batches, accumulate, rank, processes

    def __len__(self) -> int:
        return len(self.batches) * self.accumulate

    @property
    def largest(self) -> int:
        """Images in the largest batch."""
        return -(-self.batches.batch_size // (self.accumulate * self.processes))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shares = self.accumulate * self.processes
        for whole in self.batches:
            for index in range(self.accumulate):
                yield whole[index * self.processes + self.rank :: shares]
