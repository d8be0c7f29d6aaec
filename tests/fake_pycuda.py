"""A fake of `pycuda.driver`, on a `FakeGpu`."""

from __future__ import annotations

import ctypes
import json
from types import ModuleType, SimpleNamespace
from typing import Any

import cuda_on_cpu
import numpy as np
from fake_driver import CUresult

WORDS = {
    CUresult.CUDA_ERROR_OUT_OF_MEMORY: "out of memory",
    CUresult.CUDA_ERROR_ILLEGAL_ADDRESS: "an illegal memory access was encountered",
}


def make_pycuda(gpu: Any) -> Any:
    """`pycuda.driver`, as far as the runtime uses it."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class LogicError(Error):
        pass

    def failure(name: str) -> Error:
        kind = MemoryError if gpu.error is CUresult.CUDA_ERROR_OUT_OF_MEMORY else LogicError
        return kind(f"{name} failed: {WORDS[gpu.error]}")

    def call(name: str) -> None:
        if gpu.fails(name):
            raise failure(name)

    def current() -> None:
        if not gpu.stack:
            gpu.problems.append("pycuda was called without a current context")
            raise LogicError("explicit_context_dependent failed: invalid device context - no currently active"
                             " context?")  # fmt: skip

    class Context:
        """The primary context."""

        valid = True

        def __init__(self) -> None:
            call("cuDevicePrimaryCtxRetain")
            gpu.take("release context", id(self))

        def push(self) -> None:
            call("cuCtxPushCurrent")
            gpu.stack.append(self)

        @staticmethod
        def pop() -> None:
            gpu.stack.pop()
            call("cuCtxPopCurrent")

        @staticmethod
        def get_current() -> Any:
            return gpu.stack[-1] if gpu.stack else None

        def detach(self) -> None:
            # Elsewhere pycuda forgets to release it.
            assert gpu.stack[-1:] == [self]
            assert self.valid
            self.valid = False
            gpu.stack.pop()
            # The driver still has it on its stack.
            gpu.take("cuCtxPopCurrent", "context")
            gpu.give_back("release context", id(self))

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0
            call("cuDeviceGet")

        def retain_primary_context(self) -> Context:
            return Context()

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            current()
            assert flags == 1
            call("cuStreamCreate")
            self.handle = gpu.open_stream()
            gpu.take("destroy stream", self.handle)

        def synchronize(self) -> None:
            handle = self.handle
            del self  # C++ has no frames that keep it
            current()
            call("cuStreamSynchronize")
            gpu.wait(handle)

        def __del__(self) -> None:
            if hasattr(self, "handle"):
                if gpu.streams.pop(self.handle).waiting and not gpu.broken:
                    gpu.problems.append("a stream was destroyed with work on it")
                gpu.give_back("destroy stream", self.handle)

    class Event:
        """Its time is how much its GPU had done when it was reached."""

        def __init__(self, flags: int = 0) -> None:
            current()
            call("cuEventCreate")
            self.time = [0]
            gpu.take("destroy event", id(self.time))

        def record(self, stream: Stream) -> None:
            handle, time = stream.handle, self.time
            del self, stream
            call("cuEventRecord")
            gpu.streams[handle].put("event", lambda: time.append(len(gpu.ran)))

        def time_since(self, start: Event) -> float:
            times = start.time[-1], self.time[-1]
            del self, start
            call("cuEventElapsedTime")
            return float(times[1] - times[0])

        def __del__(self) -> None:
            if hasattr(self, "time"):
                gpu.give_back("destroy event", id(self.time))

    class DeviceAllocation:
        def __init__(self, nbytes: int) -> None:
            assert isinstance(nbytes, int) and nbytes > 0
            current()
            call("cuMemAlloc")
            self.address = gpu.reserve(nbytes)
            gpu.take("free", self.address)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            gpu.give_back("free", self.address)
            gpu.free(self.address)

    class HostAllocation:
        """The base of a page-locked array, by NumPy's array interface."""

        def __init__(self, nbytes: int) -> None:
            current()
            call("cuMemHostAlloc")
            self.address = gpu.reserve(nbytes)
            gpu.take("free host", self.address)

        def free(self) -> None:
            gpu.give_back("free host", self.address)
            gpu.free(self.address)

    def pagelocked_empty(shape: Any, dtype: Any) -> Any:
        kind = np.dtype(dtype)
        allocation = HostAllocation(int(np.prod(shape)) * kind.itemsize)
        allocation.__array_interface__ = {  # type: ignore[attr-defined]
            "shape": tuple(shape), "typestr": kind.str, "data": (allocation.address, False), "version": 3,
        }  # fmt: skip
        return np.asarray(allocation)

    class Module:
        """Unloaded when neither it nor one of its functions is referred to any more."""

        def __init__(self, image: bytes) -> None:
            current()
            call("cuModuleLoadDataEx")
            self.source, self.kernels = json.loads(image)
            gpu.take("unload module", id(self))

        def get_function(self, name: str) -> Function:
            if gpu.fails("cuModuleGetFunction"):
                del self  # as above
                raise failure("cuModuleGetFunction")
            return Function(self, name.removeprefix("_Z"))

        def __del__(self) -> None:
            if hasattr(self, "source"):
                gpu.give_back("unload module", id(self))

    class Function:
        def __init__(self, module: Module, kernel: str) -> None:
            self.module, self.kernel = module, kernel

        def get_attribute(self, attribute: str) -> int:
            del self
            assert attribute == "static"
            call("cuFuncGetAttribute")
            return int(gpu.static_shared)

        def set_attribute(self, attribute: str, value: int) -> None:
            kernel = self.kernel
            del self
            assert attribute == "most dynamic"
            call("cuFuncSetAttribute")
            gpu.allowed_shared[kernel] = value

        def _launch_kernel(
            self, grid: tuple[int, ...], block: tuple[int, ...], arguments: bytes, shared: int, stream: Stream
        ) -> None:
            source, kernels, kernel = self.module.source, tuple(self.module.kernels), self.kernel
            handle = stream.handle
            del self, stream
            current()
            call("cuLaunchKernel")
            gpu.launched.append((kernel, grid, block, arguments, shared, handle))
            values: Any = None
            if gpu.computes:
                kinds = cuda_on_cpu.kinds(source, kernels, kernel)
                values = cuda_on_cpu.unpack(kinds, arguments)
                for kind, value in zip(kinds, values, strict=True):
                    if kind is ctypes.c_void_p:
                        gpu.check(value, 1)

            def work() -> None:
                if values is not None:
                    with gpu.lock:  # the shim runs one kernel at a time
                        cuda_on_cpu.call(source, kernels, kernel, grid, block, shared, values, kinds)

            gpu.streams[handle].put(kernel.split("<")[0], work)

    def put(name: str, call_name: str, handle: int, target: int, source: int, nbytes: int, host: int) -> None:
        current()
        call(call_name)
        checked = [target, source]
        if not gpu.allocated(host, nbytes):  # it is not pinned
            checked.remove(host)
        gpu.streams[handle].put(name, lambda: gpu.copy(target, source, nbytes, checked))

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream) -> None:
        assert src.flags.c_contiguous
        handle = stream.handle
        del stream  # as above
        host = src.ctypes.data
        put("upload", "cuMemcpyHtoDAsync", handle, dest, host, src.nbytes, host)

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream) -> None:
        assert dest.flags.c_contiguous
        handle = stream.handle
        del stream
        host = dest.ctypes.data
        put("download", "cuMemcpyDtoHAsync", handle, host, src, dest.nbytes, host)

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream) -> None:
        handle = stream.handle
        del stream
        current()
        call("cuMemcpyDtoDAsync")
        gpu.check(src, size)
        gpu.check(dest, size)
        gpu.streams[handle].put("copy", lambda: None)

    def memset_d8_async(dest: int, data: int, count: int, stream: Stream) -> None:
        handle = stream.handle
        del stream
        current()
        call("cuMemsetD8Async")
        gpu.check(dest, count)
        gpu.streams[handle].put("fill", lambda: None)

    module: Any = ModuleType("pycuda.driver")
    module.Error, module.MemoryError, module.LogicError = Error, MemoryError, LogicError
    module.init = lambda flags=0: call("cuInit")
    module.Device, module.Context, module.Stream, module.Event = Device, Context, Stream, Event
    module.mem_alloc, module.pagelocked_empty = DeviceAllocation, pagelocked_empty
    module.memcpy_htod_async, module.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    module.memcpy_dtod_async, module.memset_d8_async = memcpy_dtod_async, memset_d8_async
    module.module_from_buffer = Module
    module.function_attribute = SimpleNamespace(
        SHARED_SIZE_BYTES="static", MAX_DYNAMIC_SHARED_SIZE_BYTES="most dynamic"
    )
    return module
