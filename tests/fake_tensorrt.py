"""A fake of `tensorrt` and `tensorrt_rtx`, on a `FakeGpu`: the engine is an ONNX file."""

from __future__ import annotations

import ctypes
import weakref
from enum import Enum, IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from fake_driver import CUresult


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


USER_MANAGED = "memory of the caller's"


def make_tensorrt(gpu: Any, kind: str = "10") -> Any:
    """`tensorrt` 8.6 or 10, or `tensorrt_rtx`, as far as the runtime uses it."""

    class ILogger:
        Severity = Severity

    class Counted:
        """Something that is destroyed when nobody refers to it any more."""

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

    class RuntimeCache:
        content = b""

        def deserialize(self, data: bytes) -> bool:
            if gpu.fails("deserialize"):
                raise RuntimeError("std::bad_alloc")
            self.content = data if data.startswith(b"compiled") else b""
            return bool(self.content)

        def serialize(self) -> bytes:
            return self.content

    class RuntimeConfig:
        strategy = cache = None

        def create_runtime_cache(self) -> object:
            return RuntimeCache()

        def set_runtime_cache(self, cache: object) -> None:
            self.cache = cache

        def set_execution_context_allocation_strategy(self, strategy: str) -> None:
            self.strategy = strategy

    class Engine(Counted):
        cache: Any = None

        def __init__(self, runtime: Runtime, data: bytes) -> None:
            super().__init__(runtime)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            self.inputs = {value.name: value for value in self.session.get_inputs()}
            self.outputs = {value.name: value for value in self.session.get_outputs()}
            self.values = self.inputs | self.outputs
            self.num_io_tensors = len(self.values)
            setattr(self, "device_memory_size" if kind == "8.6" else "device_memory_size_v2", 4096)

        def create_runtime_config(self) -> RuntimeConfig:
            return RuntimeConfig()

        def get_tensor_name(self, index: int) -> str:
            return list(self.values)[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType(self.values[name].type)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(side if isinstance(side, int) else -1 for side in self.values[name].shape)

        def create_execution_context(self, how: Any) -> Any:
            """With a strategy; TensorRT-RTX also takes settings."""
            if kind == "rtx":  # whose contexts share what they compile
                assert how.strategy == USER_MANAGED and how.cache is not None
                self.cache = self.cache or how.cache
                assert how.cache is self.cache
                gpu.compilations += not how.cache.content
                how.cache.content = b"compiled"
            else:
                assert how == USER_MANAGED
            return self.create_execution_context_without_device_memory()

        def create_execution_context_without_device_memory(self) -> Any:
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

        def _set_device_memory(self, address: int, size: int) -> None:
            gpu.check(address, size)
            self.memory = address

        if kind == "8.6":
            device_memory = property(None, lambda self, address: self._set_device_memory(address, 4096))
        else:
            set_device_memory = _set_device_memory

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

    module: Any = ModuleType("tensorrt_rtx" if kind == "rtx" else "tensorrt")
    module.__version__ = {"8.6": "8.6.1", "10": "10.9.0.34", "rtx": "1.7.1"}[kind]
    module.ILogger, module.Runtime = ILogger, Runtime
    module.TensorIOMode = TensorIOMode
    if kind != "8.6":
        module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=USER_MANAGED)
    if kind == "rtx":
        module.IRuntimeConfig = RuntimeConfig
    return module
