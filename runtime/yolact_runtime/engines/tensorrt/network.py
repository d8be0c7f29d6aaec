"""Engines and execution contexts of TensorRT, through what its versions 8.6 to 11 have in common.

Features are detected, not version numbers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.cuda.device import Device, Stream
from yolact_runtime.engines.device.network import Network, Prepare, Tensor
from yolact_runtime.engines.outputs import INPUT, GraphOutputs
from yolact_runtime.engines.tensorrt.record import EngineRecord
from yolact_runtime.engines.tensorrt.runtime_cache import RuntimeCache
from yolact_runtime.errors import DeviceError, YolactError, device_failure, first_line
from yolact_runtime.metadata import Metadata

log = logging.getLogger(__name__)

_DTYPES = {
    "FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8,
}  # fmt: skip


class TensorRtNetwork(Network):
    """An engine of TensorRT or TensorRT-RTX in GPU memory.

    Args:
        path: The file, checked.
        metadata: Its metadata.
        record: The rest of its JSON.
        library: The module `tensorrt` or `tensorrt_rtx`.

    Raises:
        YolactError: the engine does not match its metadata.
        DeviceError: TensorRT failed.
    """

    in_graphs = True

    def __init__(self, path: Path, metadata: Metadata, record: EngineRecord, library: Any) -> None:
        super().__init__()
        self.title, self.precision = record.title, metadata.precision
        self._path, self._metadata, self._record, self._trt = path, metadata, record, library
        self._messages: deque[str] = deque(maxlen=4)
        self._engine: Any = None
        self._settings: Any = None
        self._runtime_cache: RuntimeCache | None = None
        self._scratch_bytes = 1  # that an execution needs besides inputs and outputs

    def _open(self) -> None:
        """Load the engine file and read its tensors."""
        trt = self._trt
        with self.failing("Runtime"):
            self._held.callback(self._forget)
            self._logger = _make_logger(trt, self._messages)
            self._runtime = trt.Runtime(self._logger)
        if self._record.version_compatible and hasattr(self._runtime, "engine_host_code_allowed"):
            # Such an engine contains code for the host. Its hash has been compared with its record.
            self._runtime.engine_host_code_allowed = True
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise YolactError(f"cannot read engine {self._path}: {error.strerror or error}") from error
        at = f"{len(data):,} bytes"
        with self.failing("deserialize_cuda_engine", at):
            self._engine = self._runtime.deserialize_cuda_engine(data)
            self.check(self._engine, "deserialize_cuda_engine", at)
            self._read_tensors()
            self._configure()
            size = getattr(self._engine, "device_memory_size_v2", None)
            self._scratch_bytes = max(int(self._engine.device_memory_size if size is None else size), 1)

    def _read_tensors(self) -> None:
        """Check and keep names, shapes and types of the engine's inputs and outputs."""
        modes = self._trt.TensorIOMode
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs: dict[str, list[object]] = {}
        outputs: dict[str, list[object]] = {}
        for name in names:
            sides = [side if side >= 0 else "?" for side in self._engine.get_tensor_shape(name)]
            of_input = self._engine.get_tensor_mode(name) == modes.INPUT
            (inputs if of_input else outputs)[name] = sides
        GraphOutputs(self._metadata, self._path).check(inputs, outputs)
        tensors = {}
        for name in names:
            _, *shape = tuple(self._engine.get_tensor_shape(name))
            kind = self._engine.get_tensor_dtype(name).name
            if kind not in _DTYPES or any(side < 1 for side in shape):
                raise YolactError(
                    f"{self._path}: its {name} is {kind} {tuple(shape)} for each image, which the runtime"
                    " does not support; export it again"
                )
            tensors[name] = Tensor(name, tuple(map(int, shape)), np.dtype(_DTYPES[kind]))
        if tensors[INPUT].dtype != np.dtype(self._metadata.input_dtype):
            raise YolactError(
                f"{self._path}: it takes {tensors[INPUT].dtype} images, its metadata says"
                f" {self._metadata.input_dtype}; export it again"
            )
        self.tensors = tensors

    def _configure(self) -> None:
        """Let execution contexts of TensorRT-RTX share what they compile at their first use."""
        if not hasattr(getattr(self._trt, "IRuntimeConfig", None), "create_runtime_cache"):
            return
        self._settings = self._engine.create_runtime_config()
        self._settings.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._runtime_cache = RuntimeCache(self._path, str(self._trt.__version__), self._settings)

    def _forget(self) -> None:
        if self._runtime_cache is not None:
            self._runtime_cache.keep()
        # In this order: each refers to the ones after it.
        self._runtime_cache = None
        self._settings = self._engine = self._runtime = self._logger = None

    def on_stream(self, held: ExitStack, device: Device, stream: Stream) -> Prepare:
        """Allocate the scratch memory that all executions on a stream share."""
        scratch = device.allocate(held, "TensorRT's scratch", self._scratch_bytes)
        return partial(self._execution, scratch, stream.handle)

    def _execution(
        self, scratch: int, stream: int, held: ExitStack, n: int, addresses: Mapping[str, int]
    ) -> Execution:
        """A new execution context for n images, which `held` closes."""
        at = f"batch {n}"
        with self.failing("create_execution_context", at):
            execution = Execution(self, self._context(), stream, at)
            held.callback(execution.close)
            self.check(execution.context, "create_execution_context", at)
            if getattr(execution.context, "active_optimization_profile", 0) < 0:
                done = execution.context.set_optimization_profile_async(0, stream)
                self.check(done, "set_optimization_profile_async", at)
            if hasattr(execution.context, "set_device_memory"):
                execution.context.set_device_memory(scratch, self._scratch_bytes)
            else:
                execution.context.device_memory = scratch
            shape = (n, *self.tensors[INPUT].shape)
            self.check(execution.context.set_input_shape(INPUT, shape), "set_input_shape", at)
            for name in self.tensors:
                done = execution.context.set_tensor_address(name, addresses[name])
                self.check(done, "set_tensor_address", f"{name} of {at}")
        return execution

    def _context(self) -> Any:
        if self._settings is not None:
            return self._engine.create_execution_context(self._settings)
        strategies = getattr(self._trt, "ExecutionContextAllocationStrategy", None)
        if strategies is None:  # TensorRT 8.6
            return self._engine.create_execution_context_without_device_memory()
        return self._engine.create_execution_context(strategies.USER_MANAGED)

    def _failure(self, call: str, at: str = "", reason: str = "") -> DeviceError:
        """The error of a call to TensorRT, with the last error that it logged."""
        logged = self._messages[-1] if self._messages else reason or "it gave no reason"
        self._messages.clear()  # a reported message must not explain a later failure
        return device_failure(f"{self._path}: {self._record.title}", call, logged, at)

    @contextmanager
    def failing(self, call: str, at: str = "") -> Iterator[None]:
        """Turn exceptions of TensorRT's bindings into a DeviceError."""
        try:
            yield
        except YolactError:
            raise
        except Exception as error:  # the bindings raise whatever C++ throws
            raise self._failure(call, at, first_line(error)) from error

    def check(self, value: Any, call: str, at: str = "") -> None:
        """Raise if the return value of a call means failure."""
        if value is None or value is False:
            raise self._failure(call, at)


class Execution:
    """An execution context with its shapes and addresses set once.

    Attributes:
        context: The library's. Nobody else may keep it: the traceback of an error would make it outlive the
            GPU's context.
    """

    def __init__(self, network: TensorRtNetwork, context: Any, stream: int, at: str) -> None:
        self._network, self.context, self._stream, self._at = network, context, stream, at

    def queue(self) -> None:
        """Put the network on the stream.

        Raises:
            DeviceError: TensorRT refuses.
        """
        with self._network.failing("execute_async_v3", self._at):
            self._network.check(self.context.execute_async_v3(self._stream), "execute_async_v3", self._at)

    def capturable(self) -> bool:
        """Whether a CUDA graph can be captured now: TensorRT-RTX first compiles in the background."""
        asked = getattr(self.context, "is_stream_capturable", None)
        return True if asked is None else bool(asked(self._stream))

    def close(self) -> None:
        """Release the context: the library destroys it when nobody refers to it any more."""
        self.context = None


def _make_logger(trt: Any, messages: deque[str]) -> Any:
    """A logger for TensorRT that appends its errors to `messages`."""

    class Logger(trt.ILogger):
        """Keeps errors for the exception that follows."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            kinds = trt.ILogger.Severity
            if severity in (kinds.ERROR, kinds.INTERNAL_ERROR):
                messages.append(first_line(RuntimeError(text)))
            log.debug("%s", text)

    return Logger()
