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
import weakref
from collections.abc import Callable
from enum import Enum, IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import cuda_on_cpu
import numpy as np
import onnxruntime
from fake_driver import CUresult, FakeDriver

from yolact_runtime.kernels.compile import Module

GUARD = 256
WORDS = {
    CUresult.CUDA_ERROR_OUT_OF_MEMORY: "out of memory",
    CUresult.CUDA_ERROR_ILLEGAL_ADDRESS: "an illegal memory access was encountered",
}


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
        from yolact_runtime.kernels import device

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


def make_pycuda(gpu: FakeGpu) -> Any:
    """`pycuda.driver`, as far as the runtime uses it."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class LogicError(Error):
        pass

    def call(name: str) -> None:
        if gpu.fails(name):
            kind = MemoryError if gpu.error is CUresult.CUDA_ERROR_OUT_OF_MEMORY else LogicError
            raise kind(f"{name} failed: {WORDS[gpu.error]}")

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
            self.handle = gpu._cuStreamCreate(flags)[0]
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

    def put(name: str, handle: int, target: int, source: int, nbytes: int) -> None:
        current()
        call({"upload": "cuMemcpyHtoDAsync", "download": "cuMemcpyDtoHAsync"}[name])
        gpu.streams[handle].put(name, lambda: gpu.copy(target, source, nbytes))

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream) -> None:
        assert src.flags.c_contiguous
        handle = stream.handle
        del stream  # as above
        put("upload", handle, dest, src.ctypes.data, src.nbytes)

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream) -> None:
        assert dest.flags.c_contiguous
        handle = stream.handle
        del stream
        put("download", handle, dest.ctypes.data, src, dest.nbytes)

    def memcpy_htod(dest: int, src: np.ndarray) -> None:
        current()
        call("cuMemcpyHtoD")
        gpu.check(dest, src.nbytes)
        ctypes.memmove(dest, src.ctypes.data, src.nbytes)

    module: Any = ModuleType("pycuda.driver")
    module.Error, module.MemoryError, module.LogicError = Error, MemoryError, LogicError
    module.init = lambda flags=0: call("cuInit")
    module.Device, module.Context, module.Stream = Device, Context, Stream
    module.mem_alloc, module.pagelocked_empty = DeviceAllocation, pagelocked_empty
    module.memcpy_htod_async, module.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    module.memcpy_htod = memcpy_htod
    return module


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class DataType(Enum):
    FLOAT = "tensor(float)"
    HALF = "tensor(float16)"
    INT32 = "tensor(int32)"
    INT64 = "tensor(int64)"
    UINT8 = "tensor(uint8)"


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


DTYPES = {
    DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT32: np.int32,
    DataType.INT64: np.int64, DataType.UINT8: np.uint8,
}  # fmt: skip


def make_tensorrt(gpu: FakeGpu, version: str = "10.9.0.34") -> Any:
    """`tensorrt`, as far as the runtime uses it."""

    class ILogger:
        Severity = Severity

    class Counted:
        """Something whose end is that nobody refers to it any more."""

        def __init__(self, parent: Any) -> None:
            if not gpu.stack:
                gpu.problems.append("TensorRT was called without a current context")
            self.parent = parent
            gpu.take("forget", (type(self).__name__, id(self)))

        def __del__(self) -> None:
            if hasattr(self, "parent"):
                gpu.give_back("forget", (type(self).__name__, id(self)))

    class Runtime(Counted):
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            if gpu.fails("Runtime"):
                logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            super().__init__(logger)

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            if gpu.fails("deserialize_cuda_engine"):
                self.parent.log(Severity.ERROR, "Magic tag does not match")
                return None
            return Engine(self, data)

    class Engine(Counted):
        device_memory_size_v2 = 4096

        def __init__(self, runtime: Runtime, data: bytes) -> None:
            super().__init__(runtime)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            self.inputs = {value.name: value for value in self.session.get_inputs()}
            self.outputs = {value.name: value for value in self.session.get_outputs()}
            self.values = self.inputs | self.outputs
            self.num_io_tensors = len(self.values)

        def get_tensor_name(self, index: int) -> str:
            return list(self.values)[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType(self.values[name].type)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(side if isinstance(side, int) else -1 for side in self.values[name].shape)

        def create_execution_context(self, strategy: Any) -> Any:
            assert strategy == "on its own memory"
            if gpu.fails("create_execution_context"):
                self.parent.parent.log(Severity.ERROR, "out of memory")
                return None
            return ExecutionContext(self)

    class ExecutionContext(Counted):
        active_optimization_profile = 0
        frozen = False

        def __init__(self, engine: Engine) -> None:
            super().__init__(engine)
            self.engine = engine
            self.addresses: dict[str, int] = {}
            self.n = 0
            self.memory = 0
            self.warm = False

        def set_device_memory(self, address: int, size: int) -> None:
            gpu.check(address, size)
            self.memory = address

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            if gpu.fails("set_input_shape"):
                return False
            assert name == "images" and not self.frozen
            self.n = shape[0]
            return True

        def set_tensor_address(self, name: str, address: int) -> bool:
            if gpu.fails("set_tensor_address"):
                return False
            assert name in self.engine.values and not self.frozen
            gpu.check(address, 1)
            self.addresses[name] = address
            return True

        def is_stream_capturable(self, stream: int) -> bool:
            return gpu.capturable

        def execute_async_v3(self, stream: int) -> bool:
            logger = self.engine.parent.parent
            if gpu.fails("execute_async_v3"):
                reason = "out of memory" if gpu.error is CUresult.CUDA_ERROR_OUT_OF_MEMORY else "700"
                logger.log(Severity.ERROR, f"Cuda Runtime ({reason})")
                return False
            queue = gpu.streams[stream]
            if queue.captured is not None:
                assert self.warm, "TensorRT sets things up in the first run, which cannot be captured"
                self.frozen = True
            self.warm = True
            assert self.memory and set(self.addresses) == set(self.engine.values)
            n, addresses, engine = self.n, dict(self.addresses), weakref.ref(self.engine)
            queue.put("network", lambda: run(engine(), n, addresses))
            return True

    def run(engine: Any, n: int, addresses: dict[str, int]) -> None:
        if not gpu.computes:
            return
        (name,) = engine.inputs
        shape = (n, *engine.get_tensor_shape(name)[1:])
        kind = DTYPES[engine.get_tensor_dtype(name)]
        batch = np.empty(shape, kind)
        gpu.check(addresses[name], batch.nbytes)
        ctypes.memmove(batch.ctypes.data, addresses[name], batch.nbytes)
        values = engine.session.run(list(engine.outputs), {name: batch})
        for output, value in zip(engine.outputs, values, strict=True):
            gpu.check(addresses[output], value.nbytes)
            value = np.ascontiguousarray(value)
            ctypes.memmove(addresses[output], value.ctypes.data, value.nbytes)

    module: Any = ModuleType("tensorrt")
    module.__version__ = version
    module.ILogger, module.Runtime = ILogger, Runtime
    module.TensorIOMode = TensorIOMode
    module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="on its own memory")
    return module
