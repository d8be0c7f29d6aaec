"""One training in many processes, as `torchrun` starts them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from yolact.engine import pick_device


@dataclass(frozen=True)
class Processes:
    """The processes of a training. With a single one, no method communicates.

    Attributes:
        rank: Index of this process, 0-based. Process 0 writes and logs.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and logs."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self.count == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag))).item())

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, by rank; any object that can be pickled."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` with gradients averaged over the processes."""
        return DistributedDataParallel(module) if self.count > 1 else module

    def postponed(self, module: nn.Module, more: bool) -> AbstractContextManager[None]:
        """A context without exchange of gradients if `more` backward passes follow before the step."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) and more else nullcontext()


def unwrap(module: nn.Module) -> nn.Module:
    """The module that was given to `Processes.wrap`."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextmanager
def join_processes(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that `torchrun` started, if it did.

    Yields the processes and this one's device: with `auto` or `cuda`, each process of a machine has its own
    GPU.

    Raises:
        UsageError: there is no such device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(), pick_device(device)
        return
    chosen = pick_device(device)
    if chosen.type == "cuda":
        chosen = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(chosen)
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    processes = Processes(dist.get_rank(), dist.get_world_size())
    if not processes.main:
        logging.getLogger("yolact").setLevel(logging.WARNING)
    yield processes, chosen
    # Not after an error: the others may be waiting for this process, and fail when it exits.
    dist.destroy_process_group()
