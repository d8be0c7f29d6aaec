"""A GPU without hardware: stand-ins for pycuda, TensorRT and the driver that keep one account together.

What is put on a stream waits there until somebody waits for it, as on a GPU: who reads too early finds
nothing, and who frees or overwrites too early spoils the result. Kernels are the project's own, compiled with
g++; the network is the engine file, which is an ONNX file here, run by ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import cuda_on_cpu
import numpy as np
from fake_driver import FakeDriver
from fake_pycuda import make_pycuda
from fake_tensorrt import make_tensorrt

from yolact_runtime.cuda.compile import Module

GUARD = 256


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


class FakeGpu(FakeDriver):
    """The driver, and the account of all three libraries.

    Attributes:
        ran: (stream, name) of what the GPU did, in order.
        problems: What a GPU or pycuda would not forgive.
        computes: Whether kernels and networks run; otherwise they only take place.
        capturable: What `is_stream_capturable` says.
        peak: The most streams with work waiting at the same time.
    """

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[tuple[int, str]] = []
        self.problems: list[str] = []
        self.computes = True
        self.capturable = True
        self.peak = 0
        self.streams: dict[int, FakeStream] = {}
        self.blocks: dict[int, tuple[int, np.ndarray]] = {}
        self.lock = threading.RLock()
        self.local = threading.local()
        self.fail_when: Callable[[str], bool] = lambda name: False
        self.pycuda = make_pycuda(self)
        self.tensorrt = make_tensorrt(self)

    def install(self, monkeypatch: Any) -> FakeGpu:
        """Put it where the runtime looks for a GPU."""
        from yolact_runtime.cuda import device

        bindings = ModuleType("cuda.bindings")
        bindings.driver = self  # type: ignore[attr-defined]
        package = ModuleType("pycuda")
        package.driver = self.pycuda  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", self.pycuda)
        monkeypatch.setitem(sys.modules, "tensorrt", self.tensorrt)
        monkeypatch.setattr(device.nvrtc, "choose", lambda capability, newest_major: "nvrtc")
        monkeypatch.setattr(device, "compile_kernels", compile_kernels)
        return self

    # ---- the account ----

    def fails(self, name: str, *arguments: Any) -> bool:
        with self.lock:  # without the arguments, which would keep graphs alive
            failed = super().fails(name) or self.fail_when(name)
        if failed and name == "cuStreamEndCapture":  # the capture ends all the same
            self.streams[arguments[0]].captured = None
        return failed

    def take(self, end: str, value: Any) -> None:
        with self.lock:
            self._held.append((end, value))

    def give_back(self, end: str, value: Any) -> None:
        with self.lock:
            if (end, value) not in self._held:
                self.problems.append(f"{end} of {value}, which is not held")
                return
            self._held.remove((end, value))
            if not self.stack and end != "release context":
                self.problems.append(f"{end} without a current context")

    @property
    def stack(self) -> list[Any]:
        """Contexts that pycuda has on this thread's stack."""
        if not hasattr(self.local, "stack"):
            self.local.stack = []
        return self.local.stack

    # ---- memory ----

    def reserve(self, nbytes: int) -> int:
        raw = np.full(nbytes + 3 * GUARD, 0xFF, np.uint8)
        address = raw.ctypes.data + GUARD + -raw.ctypes.data % GUARD
        if not self.computes:  # then nobody writes what is read
            raw[address - raw.ctypes.data :][:nbytes] = 0
        with self.lock:
            self.blocks[address] = (nbytes, raw)
        return address

    def free(self, address: int) -> None:
        with self.lock:
            nbytes, raw = self.blocks.pop(address)
        start = address - raw.ctypes.data
        if (raw[:start] != 0xFF).any() or (raw[start + nbytes :] != 0xFF).any():
            self.problems.append(f"something was written around a block of {nbytes} bytes")

    def check(self, address: int, nbytes: int) -> None:
        """Note an access to what is not allocated."""
        with self.lock:
            inside = any(start <= address and address + nbytes <= start + size for start, (size, _) in
                         self.blocks.items())  # fmt: skip
        if not inside:
            self.problems.append(f"{nbytes} bytes at {address} are not allocated")
            raise AssertionError(self.problems[-1])

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self.check(target, nbytes)
        self.check(source, nbytes)
        ctypes.memmove(target, source, nbytes)

    # ---- streams ----

    def wait(self, handle: int) -> None:
        stream = self.streams[handle]
        with self.lock:
            busy = sum(bool(other.waiting) for other in self.streams.values())
            self.peak = max(self.peak, busy)
            waiting, stream.waiting = stream.waiting, []
        for name, work in waiting:
            self.ran.append((handle, name))
            work()

    # ---- the driver's functions that pycuda has not ----

    def _cuStreamCreate(self, flags: int) -> tuple[int]:  # noqa: N802
        handle = next(self._numbers)
        self.streams[handle] = FakeStream()
        return (handle,)

    def _cuCtxPopCurrent(self) -> tuple[()]:  # noqa: N802
        return ()

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[()]:  # noqa: N802
        assert mode == 1
        self.streams[stream].captured = []
        return ()

    def _cuStreamEndCapture(self, stream: int) -> tuple[int]:  # noqa: N802
        captured, self.streams[stream].captured = self.streams[stream].captured, None
        graph = Graph(next(self._numbers))
        graph.works = captured or []
        return (graph,)

    def _cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[int]:  # noqa: N802
        made = Graph(next(self._numbers))
        made.works = graph.works
        return (made,)

    def _cuGraphLaunch(self, graph: Any, stream: int) -> tuple[()]:  # noqa: N802
        for name, work in graph.works:
            self.streams[stream].put(f"graph: {name}", work)
        return ()

    def _cuModuleLoadData(self, image: bytes) -> tuple[Any]:  # noqa: N802
        return (Loaded(next(self._numbers), json.loads(image)),)

    def _cuModuleGetFunction(self, module: Any, name: bytes) -> tuple[Any]:  # noqa: N802
        source, kernels = module.content
        return ((source, tuple(kernels), name.decode()),)

    def _cuLaunchKernel(  # noqa: N802
        self, function: Any, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int, stream: int,
        parameters: Any, extra: int,
    ) -> tuple[()]:  # fmt: skip
        source, kernels, kernel = function
        values, kinds = parameters
        grid, block = (gx, gy, gz), (bx, by, bz)
        for value, kind in zip(values, kinds, strict=True):
            if kind is ctypes.c_void_p:
                self.check(value, 1)

        def work() -> None:
            if not self.computes:
                return
            with self.lock:  # the stand-in for CUDA runs one kernel at a time
                cuda_on_cpu.call(source, kernels, kernel, grid, block, shared, values, kinds)

        self.streams[stream].put(kernel.split("<")[0], work)
        return ()


class Graph(int):
    """A handle with the work that it stands for."""

    works: list[tuple[str, Callable[[], None]]]


class Loaded(int):
    """A module's handle with its content."""

    content: Any

    def __new__(cls, number: int, content: Any) -> Loaded:
        made = super().__new__(cls, number)
        made.content = content
        return made


def compile_kernels(source: str, expressions: Any, capability: Any, library: str) -> Module:
    """In place of NVRTC: what is to be compiled, to be compiled by g++ when it is launched."""
    image = json.dumps([source, sorted(set(expressions))]).encode()
    return Module(image, {name: name for name in expressions}, "", capability, (12, 9))
