"""A fake of the parts of PyTorch's CUDA that checkpoints use, on a `FakeGpu` and computed on the CPU.

What is on a stream when PyTorch takes it runs first, as on a GPU that is fast, so operations have the order
of the stream. A captured graph repeats the recorded operations into the tensors that they made.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Keeps each operation with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, made))
        return made


def repeat(operations: list[tuple[Any, Any, Any, Any]]) -> None:
    """Run operations again, into the memory of the first time."""
    for function, args, kwargs, made in operations:
        again = function(*args, **kwargs)
        for old, new in zip(*map(tensors, (made, again)), strict=True):
            if old.data_ptr() != new.data_ptr():
                old.copy_(new)


def tensors(value: Any) -> list[torch.Tensor]:
    values = value if isinstance(value, tuple | list) else [value]
    return [one for one in values if isinstance(one, torch.Tensor)]


def install_torch_cuda(gpu: Any, monkeypatch: Any) -> None:
    """Let checkpoints run on the fake GPU."""
    from yolact import gpu as module

    class Stream:
        """A stream of PyTorch's own, which works like any other."""

        def __init__(self, handle: int) -> None:
            self.handle = handle

        def wait_stream(self, other: Stream) -> None:
            gpu.names.append(f"{names.get(self.handle, 'ours')} waits for {names.get(other.handle, 'ours')}")
            waited = other.handle
            gpu.streams[self.handle].put("wait", lambda: gpu.wait(waited))

        def synchronize(self) -> None:
            gpu.fails("torch synchronizes")
            gpu.wait(self.handle)

    class ExternalStream(Stream):
        def __init__(self, handle: int, device: Any = None) -> None:
            if gpu.fails("ExternalStream"):
                raise RuntimeError("CUDA error: invalid resource handle")
            assert handle in gpu.streams
            super().__init__(handle)

    default = Stream(gpu.open_stream())
    names = {default.handle: "default"}
    current: list[int] = []
    pools = itertools.count(1)

    @contextmanager
    def stream(entered: Stream) -> Iterator[None]:
        assert gpu.stack
        assert gpu.streams[entered.handle].captured is None, "it must not be in a graph of the caller's"
        gpu.wait(entered.handle)
        current.append(entered.handle)
        with gpu.lock:
            gpu.ran.append((entered.handle, "network"))
        try:
            if gpu.fails("network"):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
            yield
        finally:
            current.pop()

    class CUDAGraph:
        """Records what runs between begin and end.

        Attributes:
            began: The pool; None without one, and after `reset`.
        """

        def __init__(self) -> None:
            self.recorder = Recorder()
            self.began: Any = None
            self.ended = False

        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
            assert capture_error_mode == "thread_local"
            assert current[-1] != default.handle, "the default stream cannot be captured"
            self.began = pool
            gpu.graph_pools.append((current[-1], pool))
            if gpu.fails("capture_begin"):
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            self.recorder.__enter__()

        def capture_end(self) -> None:
            self.recorder.__exit__(None, None, None)
            if gpu.fails("capture_end"):
                raise RuntimeError("CUDA error: capture invalidated")
            self.ended = True
            gpu.take("reset graph", id(self))

        def replay(self) -> None:
            gpu.fails("replay")
            repeat(self.recorder.operations)

        def reset(self) -> None:
            self.began = None
            if self.ended:
                gpu.give_back("reset graph", id(self))
                self.ended = False

        def __del__(self) -> None:
            if self.began is not None:
                gpu.problems.append("a graph was freed while the allocator asks it what belongs to it")

    def view(address: int, shape: tuple[int, ...], dtype: np.dtype, device: Any) -> torch.Tensor:
        nbytes = int(np.prod(shape)) * dtype.itemsize
        gpu.check(address, nbytes)
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        return torch.from_numpy(np.frombuffer(memory, dtype).reshape(shape))

    monkeypatch.setattr(module, "on_gpu", lambda device: True)
    monkeypatch.setattr(module, "pick_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(module, "view", view)
    monkeypatch.setattr(torch.cuda, "ExternalStream", ExternalStream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: default)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: default)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(pools)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: gpu.fails("torch.cuda.synchronize"))
