"""A deserialised engine and its execution contexts, with what the APIs of TensorRT 8.6 to 11 have in common.

Versions are told apart by what their API has, never by number.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.cuda.resource import Owner
from yolact_runtime.engines.outputs import INPUT, GraphOutputs
from yolact_runtime.engines.tensorrt.chain import Chain, Tensor
from yolact_runtime.engines.tensorrt.record import EngineRecord
from yolact_runtime.errors import DeviceError, YolactError, device_failure, first_line
from yolact_runtime.metadata import Metadata

log = logging.getLogger(__name__)

_DTYPES = {
    "FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8,
}  # fmt: skip


class Model(Owner):
    """An engine in the GPU's memory; opened and closed with the context current.

    Attributes:
        path: The file.
        metadata: What it is.
        outputs: What its outputs mean.
        chain: What runs before and after it.
        scratch_bytes: Memory that an execution needs besides inputs and outputs.
    """

    chain: Chain
    scratch_bytes: int

    def __init__(self, path: Path, metadata: Metadata, record: EngineRecord, library: Any) -> None:
        super().__init__()
        self.path, self.metadata = path, metadata
        self.outputs = GraphOutputs(metadata, path)
        self._record, self._trt = record, library
        self._messages: deque[str] = deque(maxlen=4)
        self._engine: Any = None
        self._settings: Any = None

    def _open(self) -> None:
        trt = self._trt
        with self.failing("Runtime"):
            self._held.callback(self._forget)
            self._logger = _make_logger(trt, self._messages)
            self._runtime = trt.Runtime(self._logger)
        if self._record.version_compatible and hasattr(self._runtime, "engine_host_code_allowed"):
            # Such an engine brings code for the host along. Its hash has been compared with its record.
            self._runtime.engine_host_code_allowed = True
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise YolactError(f"cannot read engine {self.path}: {error.strerror or error}") from error
        at = f"{len(data):,} bytes"
        with self.failing("deserialize_cuda_engine", at):
            self._engine = self._runtime.deserialize_cuda_engine(data)
            self._answer(self._engine, "deserialize_cuda_engine", at)
            self._read_tensors()
            self._configure()
            size = getattr(self._engine, "device_memory_size_v2", None)
            self.scratch_bytes = max(int(self._engine.device_memory_size if size is None else size), 1)
        self.chain.check()

    def _read_tensors(self) -> None:
        modes = self._trt.TensorIOMode
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == modes.INPUT]
        self.outputs.check(inputs, [name for name in names if name not in inputs])
        tensors = {}
        for name in names:
            _, *shape = tuple(self._engine.get_tensor_shape(name))
            kind = self._engine.get_tensor_dtype(name).name
            if kind not in _DTYPES or any(side < 1 for side in shape):
                raise YolactError(
                    f"{self.path}: its {name} is {kind} {tuple(shape)} for each image, which the runtime does"
                    " not take; export it again"
                )
            tensors[name] = Tensor(name, tuple(map(int, shape)), np.dtype(_DTYPES[kind]))
        if tensors[INPUT].dtype != np.dtype(self.metadata.input_dtype):
            raise YolactError(
                f"{self.path}: it takes {tensors[INPUT].dtype} images, its metadata says"
                f" {self.metadata.input_dtype}; export it again"
            )
        self.chain = Chain(self.metadata, tensors, self.path)

    def _configure(self) -> None:
        """Let contexts of TensorRT-RTX, which compile when they are first used, share what they compile."""
        if not hasattr(getattr(self._trt, "IRuntimeConfig", None), "create_runtime_cache"):
            return
        self._settings = self._engine.create_runtime_config()
        self._settings.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._settings.set_runtime_cache(self._settings.create_runtime_cache())

    def _forget(self) -> None:
        # In this order: each refers to those that follow.
        self._settings = self._engine = self._runtime = self._logger = None

    def execution(
        self, held: ExitStack, n: int, scratch: int, addresses: Mapping[str, int], stream: int
    ) -> Execution:
        """A way to run n images, which `held` gives back when it closes.

        Args:
            held: Closed with the context current.
            n: Images, within the profile.
            scratch: Address of `scratch_bytes`, which only executions one after the other may share.
            addresses: Of the input and of each output.
            stream: Handle.

        Raises:
            DeviceError: TensorRT refuses.
        """
        at = f"batch {n}"
        with self.failing("create_execution_context", at):
            execution = Execution(self, self._context(), at)
            held.callback(execution.close)
            self._answer(execution.context, "create_execution_context", at)
            if getattr(execution.context, "active_optimization_profile", 0) < 0:
                done = execution.context.set_optimization_profile_async(0, stream)
                self._answer(done, "set_optimization_profile_async", at)
            if hasattr(execution.context, "set_device_memory"):
                execution.context.set_device_memory(scratch, self.scratch_bytes)
            else:
                execution.context.device_memory = scratch
            shape = (n, *self.chain.tensors[INPUT].shape)
            self._answer(execution.context.set_input_shape(INPUT, shape), "set_input_shape", at)
            for name in self.chain.tensors:
                done = execution.context.set_tensor_address(name, addresses[name])
                self._answer(done, "set_tensor_address", f"{name} of {at}")
        return execution

    def _context(self) -> Any:
        if self._settings is not None:
            return self._engine.create_execution_context(self._settings)
        strategies = getattr(self._trt, "ExecutionContextAllocationStrategy", None)
        if strategies is None:  # TensorRT 8.6
            return self._engine.create_execution_context_without_device_memory()
        return self._engine.create_execution_context(strategies.USER_MANAGED)

    def failure(self, call: str, at: str = "", reason: str = "") -> DeviceError:
        """The error of a call to TensorRT, with what it logged last."""
        logged = self._messages[-1] if self._messages else reason or "it gave no reason"
        self._messages.clear()  # what is told once is no reason for what fails later
        return device_failure(f"{self.path}: {self._record.title}", call, logged, at)

    @contextmanager
    def failing(self, call: str, at: str = "") -> Iterator[None]:
        """Turn what TensorRT's bindings raise into a DeviceError."""
        try:
            yield
        except YolactError:
            raise
        except Exception as error:  # the bindings raise whatever C++ threw
            raise self.failure(call, at, first_line(error)) from error

    def _answer(self, value: Any, call: str, at: str = "") -> None:
        """Raise where a call's value says that it failed."""
        if value is None or value is False:
            raise self.failure(call, at)


class Execution:
    """An execution context with its shapes and addresses set once; made by `Model.execution`.

    Attributes:
        context: The library's; nobody else may keep it: an error's traceback would make it outlive the GPU's.
    """

    def __init__(self, model: Model, context: Any, at: str) -> None:
        self._model, self.context, self._at = model, context, at

    def queue(self, stream: int) -> None:
        """Put the network on a stream.

        Raises:
            DeviceError: TensorRT refuses.
        """
        try:
            done = self.context.execute_async_v3(stream)
        except Exception as error:  # the bindings raise whatever C++ threw
            raise self._model.failure("execute_async_v3", self._at, first_line(error)) from error
        if not done:
            raise self._model.failure("execute_async_v3", self._at)

    def capturable(self, stream: int) -> bool:
        """Whether a CUDA graph can be captured now: TensorRT-RTX first compiles in the background."""
        asked = getattr(self.context, "is_stream_capturable", None)
        return True if asked is None else bool(asked(stream))

    def close(self) -> None:
        """Give the context back: the library does so when nobody refers to it any more."""
        self.context = None


def _make_logger(trt: Any, messages: deque[str]) -> Any:
    class Logger(trt.ILogger):
        """Keeps the last errors, for the exception that follows."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            kinds = trt.ILogger.Severity
            if severity in (kinds.ERROR, kinds.INTERNAL_ERROR):
                messages.append(first_line(RuntimeError(text)))
            log.debug("%s", text)

    return Logger()
