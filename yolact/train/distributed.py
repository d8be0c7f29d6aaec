"""One training in many processes, on one machine or several, as `torchrun` starts them."""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from yolact.engine import pick_device
from yolact_runtime.errors import UsageError, YolactError, first_line

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT = 600  # seconds, as NCCL's; Gloo's own would be half an hour
GRACE_SECONDS = 30  # between SIGTERM and SIGKILL, as torchrun's own
GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # the variable with which newer versions of torchrun change it


@dataclass(frozen=True)
class Processes:
    """The processes of a training. With a single one, no method communicates.

    Attributes:
        rank: Index of this process, 0-based. Process 0 reads checkpoints, writes and logs.
        count: Number of processes.
        hosts: Name of each process's machine, by rank.
        launched: Whether `torchrun` started this process, and ends it.
    """

    rank: int = 0
    count: int = 1
    hosts: tuple[str, ...] = ()
    launched: bool = False

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and logs."""
        return self.rank == 0

    def name(self, rank: int) -> str:
        """A process for messages: `process 1 on gpu-07`."""
        return f"process {rank}" + (f" on {self.hosts[rank]}" if self.hosts else "")

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

    def from_first(self, compute: Callable[[], T]) -> T:
        """What `compute` returns in the first process, or its YolactError, in every process."""
        if self.count == 1:
            return compute()
        sent: list[Any] = [None]
        if self.main:
            try:
                sent = [compute()]
            except YolactError as error:
                sent = [error]
        dist.broadcast_object_list(sent, device=torch.device("cpu"))
        if isinstance(sent[0], YolactError):
            raise sent[0]
        value: T = sent[0]
        return value

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` with the first process's weights, and gradients averaged over the processes."""
        return DistributedDataParallel(module) if self.count > 1 else module

    def postponed(self, module: nn.Module, more: bool) -> AbstractContextManager[None]:
        """A context without exchange of gradients if `more` backward passes follow before the step."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) and more else nullcontext()


def unwrap(module: nn.Module) -> nn.Module:
    """The module that was given to `Processes.wrap`."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextmanager
def join_processes(device: str, timeout: int = TIMEOUT) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that `torchrun` started, if it did.

    Yields the processes and this one's device: with `auto` or `cuda`, each process of a machine has its own
    GPU. If `torchrun` is killed, its processes are stopped as by SIGTERM.

    Args:
        device: Of `--device`.
        timeout: Seconds to wait for another process, here and in every exchange.

    Raises:
        UsageError: there is no such device, or `torchrun` did not start this process.
        YolactError: another process cannot be reached, has failed, or does not answer.
    """
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if launched:
        threading.Thread(target=_end_without, args=(os.getppid(),), daemon=True).start()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if not launched:
            _warn_of_tasks()
        yield Processes(launched=launched), pick_device(device)
        return
    chosen = pick_device(device)
    if chosen.type == "cuda":
        # Without torchrun, as in Kubeflow's PyTorchJob, there is one process on a machine.
        chosen = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(chosen)
    try:
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        _connect(backend, timeout)
        yield _introduce(launched), chosen
    except RuntimeError as error:
        known = explain_lost(error, timeout)
        if known is None:
            raise
        raise known from error
    # Not after an error: the others may be waiting for this process, and fail when it exits.
    dist.destroy_process_group()


def _connect(backend: str, timeout: int) -> None:
    """Open connections between the processes.

    Raises:
        UsageError: the environment does not say which process this is.
        YolactError: the others cannot be reached.
    """
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        dist.barrier()
    except ValueError as error:
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but this is no process of a training"
            f" ({first_line(error)}); start it with torchrun, or unset WORLD_SIZE"
        ) from error
    except RuntimeError as error:
        raise YolactError(
            f"cannot connect to the other processes of the training ({first_line(error)}); on several"
            " machines, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network interface to use, such as"
            f" eth0, and torchrun's --local-addr this machine's address (now {platform.node()})"
        ) from error


def _introduce(launched: bool) -> Processes:
    """The processes, with their machines; one process of each other machine logs where the training is."""
    rank, count = dist.get_rank(), dist.get_world_size()
    processes = Processes(rank, count, launched=launched)
    hosts = tuple(processes.gather(platform.node()))
    processes = Processes(rank, count, hosts, launched)
    if os.environ.get("LOCAL_RANK", "0") == "0" and not processes.main:
        log.info("this is %s of %d; %s logs and saves", processes.name(rank), count, processes.name(0))
    if not processes.main:
        logging.getLogger("yolact").setLevel(logging.WARNING)
    return processes


def explain_lost(error: RuntimeError, timeout: int) -> YolactError | None:
    """An error that says what to do about a connection that broke or timed out; None for another error."""
    text, reason = str(error), first_line(error)
    if text.startswith("CUDA error"):  # a kernel may time out, too
        return None
    if any(words in text for words in ("Timed out waiting", "timed out", "timeout")):
        return YolactError(
            f"another process of the training has not answered for {timeout} s: its machine may be down or"
            f" cut off, or need longer (--timeout); continue with --resume last ({reason})"
        )
    if isinstance(error, dist.DistError) or any(
        word in text for word in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL")
    ):
        return YolactError(
            f"another process of the training failed; see its output, above or on its machine ({reason})"
        )
    return None


def _end_without(parent: int) -> None:
    """Stop this process once `torchrun`, its parent, is gone: nobody else would, and a new one may start."""
    while os.getppid() == parent:
        time.sleep(1)
    log.warning("torchrun was killed: stopping")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(int(os.environ.get(GRACE) or GRACE_SECONDS))  # it may wait for a process that does not answer
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _warn_of_tasks() -> None:
    """Warn if Slurm started this command several times instead of torchrun."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1":
        log.warning("srun started %s tasks, each of which trains alone: let it start torchrun instead", tasks)
