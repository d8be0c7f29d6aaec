"""A stand-in for `cuda.bindings.driver`: keeps account of what is held, and fails where it is told to."""

from __future__ import annotations

import ctypes
import itertools
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


# What each makes, and what ends it.
PAIRS = {
    "cuDevicePrimaryCtxRetain": "cuDevicePrimaryCtxRelease",
    "cuCtxPushCurrent": "cuCtxPopCurrent",
    "cuStreamCreate": "cuStreamDestroy",
    "cuModuleLoadData": "cuModuleUnload",
    "cuMemAlloc": "cuMemFree",
    "cuEventCreate": "cuEventDestroy",
    "cuStreamEndCapture": "cuGraphDestroy",
    "cuGraphInstantiate": "cuGraphExecDestroy",
}
CONTEXT = ("cuDevicePrimaryCtxRetain", "cuCtxPushCurrent")
ATTRIBUTES = SimpleNamespace(
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=8, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=6
)


class FakeDriver:
    """Every function of the driver that the runtime calls; memory is the host's.

    Attributes:
        calls: (name, arguments) of each call, in order.
        fail_at: Index in `calls` of the one that gives `error`; none by default.
        broken: Whether every call gives `error`.
        error: What it gives.
        static_shared: Bytes that every function says it has of shared memory.
    """

    CUdevice_attribute = ATTRIBUTES
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DEFAULT=0)
    CUfunction_attribute = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES=1, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8
    )

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fail_at = -1
        self.broken = False
        self.error = CUresult.CUDA_ERROR_OUT_OF_MEMORY
        self.static_shared = 0
        self._numbers = itertools.count(1000)
        self._held: list[tuple[str, Any]] = []
        self._memory: dict[int, np.ndarray] = {}

    @property
    def names(self) -> list[str]:
        """Of the calls."""
        return [name for name, _ in self.calls]

    @property
    def held(self) -> list[tuple[str, Any]]:
        """What was made and not ended: (function that ends it, value)."""
        return list(self._held)

    def fails(self, name: str, *arguments: Any) -> bool:
        """Note a call; whether it is one that fails."""
        self.calls.append((name, arguments))
        return self.broken or len(self.calls) - 1 == self.fail_at

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            if self.fails(name, *arguments):
                return (self.error,)
            if name in PAIRS.values():
                if name == "cuCtxPopCurrent":
                    arguments = ("context",)
                self._held.remove((name, arguments[0]))
                self._memory.pop(arguments[0], None)
                return (CUresult.CUDA_SUCCESS,)
            answer = getattr(self, f"_{name}", lambda *_: ())(*arguments)
            if name in PAIRS:
                # The context is given back by its device, and what was pushed is popped.
                value = arguments[0] if name in CONTEXT else answer[0]
                self._held.append((PAIRS[name], value))
            return (CUresult.CUDA_SUCCESS, *answer)

        return call

    def _cuDeviceGet(self, ordinal: int) -> tuple[str]:  # noqa: N802
        return (f"device {ordinal}",)

    def _cuDeviceGetAttribute(self, attribute: int, device: str) -> tuple[int]:  # noqa: N802
        assert device == "device 0"
        return (attribute,)

    def _cuDeviceGetName(self, length: int, device: str) -> tuple[bytes]:  # noqa: N802
        return (b"NVIDIA RTX A4000".ljust(length, b"\0"),)

    def _cuDriverGetVersion(self) -> tuple[int]:  # noqa: N802
        return (12080,)

    def _cuDevicePrimaryCtxRetain(self, device: str) -> tuple[str]:  # noqa: N802
        return ("context",)

    def _cuStreamCreate(self, flags: int) -> tuple[str]:  # noqa: N802
        return (f"stream {next(self._numbers)}",)

    def _cuModuleLoadData(self, image: bytes) -> tuple[str]:  # noqa: N802
        assert isinstance(image, bytes)
        return (f"module {next(self._numbers)}",)

    def _cuModuleGetFunction(self, module: str, name: bytes) -> tuple[str]:  # noqa: N802
        assert isinstance(name, bytes)
        return (name.decode(),)

    def _cuFuncGetAttribute(self, attribute: int, function: str) -> tuple[int]:  # noqa: N802
        assert attribute == self.CUfunction_attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES
        return (self.static_shared,)

    def _cuEventCreate(self, flags: int) -> tuple[str]:  # noqa: N802
        return (f"event {next(self._numbers)}",)

    def _cuEventElapsedTime(self, start: str, end: str) -> tuple[float]:  # noqa: N802
        return (float(int(end.split()[1]) - int(start.split()[1])),)

    def _cuMemAlloc(self, size: int) -> tuple[int]:  # noqa: N802
        # Large blocks only serve timing and are never read.
        memory = np.zeros(min(size, 2**20), np.uint8)
        self._memory[memory.ctypes.data] = memory
        return (memory.ctypes.data,)

    def _cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: Any) -> tuple[()]:  # noqa: N802
        assert self._memory[target].nbytes == size
        ctypes.memmove(target, source, size)
        return ()

    def _cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: Any) -> tuple[()]:  # noqa: N802
        assert self._memory[source].nbytes == size
        ctypes.memmove(target, source, size)
        return ()
