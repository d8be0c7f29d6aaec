"""Shared memory in which workers pass on the images of batches, used again and again.

Fresh shared memory costs a page fault for every 4 KiB, here and there: a quarter of the time of a sample.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from yolact.data.batch import Batch, Sample, collate, from_parts, to_parts

_numbers = count()
_pools: weakref.WeakValueDictionary[int, ImagePool] = weakref.WeakValueDictionary()


class ImagePool:
    """Places for the images of batches, some for each worker.

    A place is free again when its images, and all tensors that share their memory, are gone from the process
    that has created the pool. A worker that has no free place uses fresh memory.

    Args:
        workers: Processes that write.
        places: For each of them.
        batch: Images in a batch, at most.
        height, width: Of the images.

    Raises:
        RuntimeError: there is not so much shared memory.
    """

    def __init__(self, workers: int, places: int, batch: int, height: int, width: int) -> None:
        shape = workers, places, batch, height, width, 3
        # Not `share_memory_`, which copies what is there.
        storage = torch.UntypedStorage._new_shared(4 * torch.Size(shape).numel(), device="cpu")
        self._images = torch.empty(0, dtype=torch.float32).set_(storage).view(shape)
        self._taken = torch.zeros((workers, places), dtype=torch.bool).share_memory_()
        self._number = next(_numbers)
        _pools[self._number] = self

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """`yolact.data.batch.collate`, in a worker into a free place."""
        worker = get_worker_info()
        if worker is None or len(samples) > self._images.shape[2]:
            return collate(samples)
        free = (~self._taken[worker.id]).nonzero()[:, 0].tolist()
        if not free:
            return collate(samples)
        # The first one, so that no more memory is touched than needed.
        images = self._images[worker.id, free[0], : len(samples)]
        torch.stack([sample.image.permute(1, 2, 0) for sample in samples], out=images)
        self._taken[worker.id, free[0]] = True
        targets, ids = [sample.target for sample in samples], [sample.image_id for sample in samples]
        return _PooledBatch(images.permute(0, 3, 1, 2), targets, ids, (self._number, worker.id, free[0]))

    def receive(self, worker: int, place: int, images: int) -> Tensor:
        """The images (B, 3, H, W) in a place, which is free when the last tensor on their memory is gone."""
        array = self._images[worker, place, :images].numpy()
        # The storage of the tensor, which all its views share, keeps this array alive.
        weakref.finalize(array, self._taken[worker, place].zero_).atexit = False
        return torch.from_numpy(array).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _PooledBatch(Batch):
    """A batch whose images are passed on as a place: number of the pool, worker, place."""

    place: tuple[int, int, int] = (0, 0, 0)

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self.place, len(self), to_parts(self))


def _receive(place: tuple[int, int, int], images: int, parts: tuple[Any, ...]) -> Batch:
    """The batch that a worker has written, in the process that created the pool."""
    number, worker, index = place
    return from_parts(_pools[number].receive(worker, index, images), *parts)
