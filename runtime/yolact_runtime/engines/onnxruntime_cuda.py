"""ONNX files on the GPU without TensorRT: ONNX Runtime's CUDA provider between the project's kernels.

A session computes on the stream that it is opened with, so each stream has one, with weights and working
memory of its own.

ONNX Runtime's part of a call is not captured in a CUDA graph. Its kernels copy small tables from pinned
memory that it uses again after the call, and a callback on the stream returns that memory: a captured graph
would read what is there by then, and return it at every launch. Its own graphs wait for the stream at every
launch, and other threads may not allocate while it captures.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.cuda.device import Device, Stream, check_packages
from yolact_runtime.cuda.gpu import only_the_first
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.device.engine import DeviceEngine
from yolact_runtime.engines.device.network import Network, Prepare, Tensor
from yolact_runtime.engines.io_binding import KINDS
from yolact_runtime.engines.onnxruntime import CUDA, OnnxRuntimeEngine
from yolact_runtime.engines.outputs import INPUT
from yolact_runtime.errors import DeviceError, UsageError, YolactError, device_failure, first_line

log = logging.getLogger(__name__)


def open_on_cuda(
    path: str | Path,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    streams: int | str = 1,
    graphs: bool = True,
) -> Engine:
    """Open an ONNX file on the GPU: the network in ONNX Runtime, all else in kernels on the same stream.

    Without pycuda, cuda-bindings or a compiler for the kernels, and on another GPU than the first, the CPU
    detects and computes the masks, and a warning says why.

    Args:
        path: The file.
        providers: The first is "cuda" (the default) or "cuda:N".
        threads: CPU threads, for nodes that the GPU cannot run.
        streams: Number of concurrent calls, 1..8, each with its own session and buffers; "auto" for 2.
        graphs: Launch the kernels before and after the network by CUDA graphs.

    Raises:
        YolactError: CUDA does not load, or the file is not an ONNX file from yolact-export.
        DeviceError: the GPU failed, or its memory is too small.
        UsageError: another provider is first, or this ONNX Runtime is built without CUDA.
    """
    providers = list(providers or ["cuda"])
    if not re.match(r"cuda(executionprovider)?(:|$)", providers[0].lower()):
        raise UsageError(f"providers {' '.join(providers)}: backend cuda needs cuda or cuda:N first")
    engine = OnnxRuntimeEngine(path, providers, threads, streams)  # which checks the file and the provider
    try:
        if number := int(providers[0].partition(":")[2] or 0):
            raise YolactError(only_the_first(number, "--providers cuda"))
        check_packages()
        network = OnnxRuntimeNetwork(engine, providers, threads)
        engine.close()  # its session has no stream of ours
        return DeviceEngine(engine.path, engine.metadata, network, streams, graphs)
    except UsageError:
        raise
    except YolactError as error:
        if isinstance(error, DeviceError) and engine.closed:
            raise
        log.warning("%s: detection and masks are computed on the CPU: %s", path, error)
        return OnnxRuntimeEngine(path, providers, threads, streams) if engine.closed else engine


class OnnxRuntimeNetwork(Network):
    """Sessions of an ONNX file on the CUDA provider, one for each stream.

    Args:
        engine: The file, opened and checked on the CUDA provider; it may be closed afterwards.
        providers, threads: As for `OnnxRuntimeEngine`.

    Attributes:
        sessions: By the handle of their stream. Nobody else may keep one, like the binding of an execution.
    """

    in_graphs = False

    def __init__(self, engine: OnnxRuntimeEngine, providers: Sequence[str], threads: int | None) -> None:
        super().__init__()
        self.title, self.precision = engine.name, engine.precision
        self.unknown_because = engine.unknown_because
        self._engine, self._providers, self._threads = engine, providers, threads
        self.sessions: dict[int, Any] = {}
        self.tensors = {}
        for value in engine.values():
            shape = value.shape[1:]
            if value.type not in KINDS or not all(isinstance(side, int) and side > 0 for side in shape):
                raise YolactError(
                    f"{engine.path}: its {value.name} is {value.type} {tuple(shape)} for each image, which"
                    " the kernels do not support"
                )
            self.tensors[value.name] = Tensor(value.name, tuple(shape), np.dtype(KINDS[value.type]))

    def _open(self) -> None:
        """Sessions are opened with their streams."""

    def on_stream(self, held: ExitStack, device: Device, stream: Stream) -> Prepare:
        """Open the stream's session; `held` closes it."""
        at, handle = f"stream {len(self.sessions)}", stream.handle
        # Memory grows by what is needed, as several sessions share the GPU.
        options = {"user_compute_stream": str(handle), "arena_extend_strategy": "kSameAsRequested"}
        held.callback(self._forget, handle)
        try:
            self.sessions[handle] = self._engine.open_session(self._providers, options, self._threads)
            if self.sessions[handle].get_providers()[0] != CUDA:
                raise RuntimeError("CUDA does not load any more")
        except Exception as error:  # the exceptions of ONNX Runtime have no other common base
            raise self.failure(error, "InferenceSession", at) from error
        return partial(self._execution, handle)

    def _forget(self, stream: int) -> None:
        self.sessions.pop(stream, None)

    def _execution(self, stream: int, held: ExitStack, n: int, addresses: Mapping[str, int]) -> _Execution:
        """Bind the buffers for n images to the session of a stream."""
        execution = _Execution(self, stream, f"batch {n}")
        held.callback(execution.close)
        try:
            execution.binding = self.sessions[stream].io_binding()
            for tensor in self.tensors.values():
                shape, address = [n, *tensor.shape], addresses[tensor.name]
                value = tensor.name, "cuda", 0, tensor.dtype.type, shape, address
                if tensor.name == INPUT:
                    execution.binding.bind_input(*value)
                else:
                    execution.binding.bind_output(*value)
        except Exception as error:  # as above
            raise self.failure(error, "io_binding", f"batch {n}") from error
        return execution

    def failure(self, error: Exception, call: str, at: str) -> DeviceError:
        """The error of a call to ONNX Runtime; drops its frames, which refer to the session."""
        cause = (isinstance(error, YolactError) and error.__cause__) or error
        error.__traceback__ = cause.__traceback__ = None
        return device_failure(f"{self._engine.path}: ONNX Runtime", call, first_line(cause), at)


class _Execution:
    """A session's buffers for one batch size.

    Attributes:
        binding: The session's. Nobody else may keep it, as it refers to the session: the traceback of an
            error would make the session outlive its stream.
    """

    def __init__(self, network: OnnxRuntimeNetwork, stream: int, at: str) -> None:
        import onnxruntime

        self._network, self._stream, self._at = network, stream, at
        self.binding: Any = None
        self._options = onnxruntime.RunOptions()
        # Otherwise it would wait for the stream.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def queue(self) -> None:
        """Put the network on the stream."""
        try:
            self._network.sessions[self._stream].run_with_iobinding(self.binding, self._options)
        except Exception as error:  # as above
            raise self._network.failure(error, "run_with_iobinding", self._at) from error

    def capturable(self) -> bool:
        """Never, as above."""
        return False

    def close(self) -> None:
        """Release the binding."""
        self.binding = None
