"""A GPU without hardware: fakes of pycuda, TensorRT and the driver that keep one account together.

Work that is put on a stream waits there until somebody waits for it, as on a GPU: who reads too early finds
nothing, and who frees or overwrites too early spoils the result. Kernels are the project's own, compiled with
g++; the network is the engine file, which is an ONNX file here, run by ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from fake_driver import CUresult, make_driver
from fake_pycuda import make_pycuda
from fake_tensorrt import make_tensorrt

from yolact_runtime.cuda.compile import Module

GUARD = 256
LARGE = 2**26  # bytes; larger blocks only serve timing and are never written


class FakeStream:
    """Work that waits, or that is captured.

    Attributes:
        waiting: What runs when somebody waits.
        captured: What was put on it since a capture began; None outside of captures.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[str, Callable[[], None]]] = []
        self.captured: list[tuple[str, Callable[[], None]]] | None = None

    def put(self, name: str, work: Callable[[], None]) -> None:
        (self.waiting if self.captured is None else self.captured).append((name, work))


class FakeGpu:
    """The account of all three libraries: their calls, what is held, and the work on streams.

    Attributes:
        names: Of the calls, in order.
        compilations: How often TensorRT-RTX compiled an engine for the GPU.
        fail_at: Index in `names` of the call that fails; none by default.
        fail_when: Whether the call of this name fails.
        broken: Whether every call fails.
        error: With what they fail.
        held: What was made and not ended: (how it ends, value).
        ran: (stream, name) of what the GPU did, in order.
        problems: Calls that a GPU or pycuda would punish.
        computes: Whether kernels and networks run; otherwise they are only recorded.
        capturable: What `is_stream_capturable` says.
        static_shared: Bytes of shared memory that every kernel reports.
        allowed_shared: Bytes of dynamic shared memory that were asked for, by kernel.
        launched: (kernel, grid, block, arguments, shared bytes, stream) of each launch, in order.
        compilers: (capability, newest major) of each choice of a compiler.
        peak: The most streams with work waiting at the same time.
        graph_pools: (stream, pool) of each graph that PyTorch began to capture.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.compilations = 0
        self.fail_at = -1
        self.fail_when: Callable[[str], bool] = lambda name: False
        self.broken = False
        self.error = CUresult.CUDA_ERROR_OUT_OF_MEMORY
        self._held: list[tuple[str, Any]] = []
        self.ran: list[tuple[int, str]] = []
        self.problems: list[str] = []
        self.computes = True
        self.capturable = True
        self.static_shared = 0
        self.allowed_shared: dict[str, int] = {}
        self.launched: list[tuple[Any, ...]] = []
        self.compilers: list[tuple[Any, int]] = []
        self.peak = 0
        self.graph_pools: list[tuple[int, Any]] = []
        self.streams: dict[int, FakeStream] = {}
        self.blocks: dict[int, tuple[int, np.ndarray]] = {}
        self.lock = threading.RLock()
        self.local = threading.local()
        self._numbers = itertools.count(1000)
        self.driver = make_driver(self)
        self.pycuda = make_pycuda(self)
        self.tensorrt = make_tensorrt(self)

    def install(self, monkeypatch: Any) -> FakeGpu:
        """Put it where the runtime looks for a GPU."""
        from yolact_runtime.cuda import launch

        def choose(capability: Any, newest_major: int) -> str:
            self.compilers.append((capability, newest_major))
            return "nvrtc"

        bindings = ModuleType("cuda.bindings")
        bindings.driver = self.driver  # type: ignore[attr-defined]
        package = ModuleType("pycuda")
        package.driver = self.pycuda  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", self.pycuda)
        monkeypatch.setitem(sys.modules, "tensorrt", self.tensorrt)
        monkeypatch.setattr(launch.nvrtc, "choose", choose)
        monkeypatch.setattr(launch, "compile_kernels", compile_kernels)
        return self

    # ---- the account ----

    def fails(self, name: str) -> bool:
        """Note a call; whether it is one that fails."""
        with self.lock:
            self.names.append(name)
            return self.broken or len(self.names) - 1 == self.fail_at or self.fail_when(name)

    def number(self) -> int:
        """A new handle."""
        return next(self._numbers)

    @property
    def held(self) -> list[tuple[str, Any]]:
        return list(self._held)

    def take(self, end: str, value: Any) -> None:
        with self.lock:
            self._held.append((end, value))

    def give_back(self, end: str, value: Any) -> None:
        with self.lock:
            if (end, value) not in self._held:
                self.problems.append(f"{end} of {value}, which is not held")
                return
            self._held.remove((end, value))
            if not self.stack and end not in ("release context", "cuCtxPopCurrent"):
                self.problems.append(f"{end} without a current context")

    @property
    def stack(self) -> list[Any]:
        """Contexts that pycuda has on this thread's stack."""
        if not hasattr(self.local, "stack"):
            self.local.stack = []
        return self.local.stack

    # ---- memory ----

    def reserve(self, nbytes: int) -> int:
        # If nothing computes, nothing writes what is read later.
        fill = 0xFF if self.computes and nbytes < LARGE else 0
        raw = np.full(nbytes + 3 * GUARD, fill, np.uint8) if fill else np.zeros(nbytes + 3 * GUARD, np.uint8)
        start = GUARD + -raw.ctypes.data % GUARD
        raw[:start] = raw[start + nbytes :] = 0xFF
        address = raw.ctypes.data + start
        with self.lock:
            self.blocks[address] = (nbytes, raw)
        return address

    def free(self, address: int) -> None:
        with self.lock:
            nbytes, raw = self.blocks.pop(address)
        start = address - raw.ctypes.data
        if (raw[:start] != 0xFF).any() or (raw[start + nbytes :] != 0xFF).any():
            self.problems.append(f"something was written around a block of {nbytes} bytes")

    def allocated(self, address: int, nbytes: int) -> bool:
        with self.lock:
            return any(
                start <= address and address + nbytes <= start + size
                for start, (size, _) in self.blocks.items()
            )

    def check(self, address: int, nbytes: int) -> None:
        """Note an access to what is not allocated."""
        if not self.allocated(address, nbytes):
            self.problems.append(f"{nbytes} bytes at {address} are not allocated")
            raise AssertionError(self.problems[-1])

    def copy(self, target: int, source: int, nbytes: int, checked: list[int]) -> None:
        for address in checked:
            self.check(address, nbytes)
        ctypes.memmove(target, source, nbytes)

    # ---- streams ----

    def open_stream(self) -> int:
        """The handle of a new stream."""
        handle = self.number()
        self.streams[handle] = FakeStream()
        return handle

    def wait(self, handle: int) -> None:
        stream = self.streams[handle]
        with self.lock:
            busy = sum(bool(other.waiting) for other in self.streams.values())
            self.peak = max(self.peak, busy)
            waiting, stream.waiting = stream.waiting, []
        for name, work in waiting:
            self.ran.append((handle, name))
            work()


def compile_kernels(source: str, expressions: Any, capability: Any, library: str) -> Module:
    """In place of NVRTC: what is to be compiled, to be compiled by g++ when it is launched."""
    assert library == "nvrtc"
    image = json.dumps([source, sorted(set(expressions))]).encode()
    return Module(image, {name: f"_Z{name}" for name in expressions}, "", capability, (12, 9))
