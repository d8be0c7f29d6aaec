"""Checkpoints on the GPU: the network in PyTorch between the runtime's kernels, on the same stream."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolact.config import Config
from yolact.engine import TorchEngine, describe, exact_convolutions, pick_device
from yolact.model import Yolact, YolactOutput
from yolact.model.detect import detect
from yolact_runtime.cuda.device import Device, Stream, check_packages
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.device.engine import DeviceEngine
from yolact_runtime.engines.device.network import Network, Prepare, Tensor
from yolact_runtime.engines.outputs import INPUT, GraphOutputs
from yolact_runtime.engines.threads import AUTO
from yolact_runtime.errors import DeviceError, UsageError, YolactError, device_failure, first_line
from yolact_runtime.metadata import InputSize, Metadata

log = logging.getLogger(__name__)


def open_checkpoint(
    path: str | Path,
    config: str | Config | None = None,
    device: str = "auto",
    nms: str | None = None,
    input_dtype: str = "float32",
    threads: int | None = None,
    class_names: str | None = None,
    input_size: InputSize | None = None,
    precision: str | None = None,
    streams: int | str = 1,
    graphs: bool = True,
    max_batch: int = 8,
) -> Engine:
    """Open a checkpoint; on the first GPU with the runtime's kernels around PyTorch's network.

    Without pycuda, cuda-bindings or a compiler for the kernels, with traditional NMS and on other GPUs,
    PyTorch detects and the CPU computes the masks, and a warning says why.

    Args:
        path, config, device, nms, input_dtype, threads, class_names, input_size: As for `TorchEngine`. With
            `input_dtype="uint8"` the GPU resizes images, as in an exported file.
        precision: "fp16" to compute in half precision, on a GPU only.
        streams: Concurrent calls on a GPU, 1..8, each with its own buffers; "auto" for 2.
        graphs: On a GPU, launch by CUDA graphs from the second call of each batch size.
        max_batch: On a GPU, most images in one call, which memory is allocated for.

    Raises:
        YolactError: the file cannot be opened.
        DeviceError: the GPU failed, or its memory is too small.
        UsageError: a value that is not allowed.
    """
    where = pick_device(device)
    if not on_gpu(where) and streams not in (1, AUTO):
        raise UsageError(f"streams is {streams!r}; a checkpoint has several on a GPU only: --device cuda")
    if not 1 <= max_batch <= 64:
        raise UsageError(f"max_batch is {max_batch}; it must be in 1..64")
    half = precision == "fp16" and on_gpu(where)
    engine = TorchEngine(
        path, config, str(where), nms, input_dtype, threads, class_names, input_size, half=half
    )
    if not on_gpu(where):
        return engine
    if reason := _no_kernels(engine.model.config, where):
        log.warning("%s: PyTorch detects, and masks are computed on the CPU: %s", path, reason)
        return engine
    metadata = _metadata(engine, max_batch)
    try:
        network = TorchNetwork(Path(path), engine, metadata, graphs)
        return DeviceEngine(Path(path), metadata, network, streams, graphs)
    except (UsageError, DeviceError):
        raise
    except YolactError as error:  # no compiler for the kernels
        log.warning("%s: PyTorch detects, and masks are computed on the CPU: %s", path, error)
        return engine


def on_gpu(device: torch.device) -> bool:
    """Whether a device is a GPU of CUDA's."""
    return device.type == "cuda"


def _no_kernels(config: Config, device: torch.device) -> str:
    """Why the runtime's kernels cannot be used; empty if they can."""
    if config.detect.nms == "traditional":
        return "there is no kernel for traditional NMS"
    if device.index:
        number = device.index
        return (
            "the kernels run on the first visible GPU only; to make this one the first, set"
            f" CUDA_VISIBLE_DEVICES={number} and use --device cuda"
        )
    try:
        check_packages()
    except YolactError as error:
        return str(error)
    return ""


def _metadata(engine: TorchEngine, max_batch: int) -> Metadata:
    """What the network of a checkpoint returns: raw heads, or detections that no kernel computes."""
    config = engine.model.config
    heads = config.detect.nms == "fast" and not config.model.mask_iou
    return describe(
        config,
        input_dtype=engine.metadata.input_dtype,
        precision=engine.metadata.precision,
        detect="runtime" if heads else "native",
        max_batch=max_batch,
        versions=engine.metadata.versions,
    )


class TorchNetwork(Network):
    """A checkpoint's network on the GPU; all streams share its weights.

    It captures its own CUDA graphs, whose memory PyTorch keeps; a graph of the caller's would refer to memory
    that PyTorch frees when it runs short of it.

    Args:
        path: The file, for messages.
        engine: The checkpoint, opened on the GPU.
        metadata: Says what the network returns.
        graphs: Whether to capture graphs.
    """

    in_graphs = False

    def __init__(self, path: Path, engine: TorchEngine, metadata: Metadata, graphs: bool) -> None:
        super().__init__()
        self.path, self.title, self.precision = path, engine.name, metadata.precision
        self.graphs = graphs
        self._metadata, self._device = metadata, engine.device
        self._model: Yolact | None = engine.model
        self._normalise, self._half = engine.normalise, metadata.precision == "fp16"

    def _open(self) -> None:
        """Run it once, for the shapes of its outputs, and wait for the weights."""
        meta = self._metadata
        images = torch.zeros(1, *meta.input_shape, 3, dtype=getattr(torch, meta.input_dtype))
        self._held.callback(self._forget)
        with self.failing("the first run", "batch 1"), torch.inference_mode(), exact_convolutions(True):
            images = images.to(self._device)
            found = {INPUT: images, **self.compute(images)}
            torch.cuda.synchronize(self._device)
        self.tensors = {
            name: Tensor(name, tuple(value.shape[1:]), np.dtype(str(value.dtype).removeprefix("torch.")))
            for name, value in found.items()
        }

    def _forget(self) -> None:
        self._model = None

    def compute(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs of the graph for images (n, H, W, 3), by name."""
        model = self._model
        assert model is not None
        x = self._normalise(images)
        if self._half:
            x = x.to(torch.half, memory_format=torch.channels_last)
        output: YolactOutput = model(x)
        if self._metadata.detect == "runtime":
            return output._asdict()
        # With fixed shapes, as in an exported graph.
        found = detect(model, YolactOutput(*(value.float() for value in output)), compact=False)
        values = found._asdict()
        return {name: values[name] for name in GraphOutputs(self._metadata, self.path).names}

    def on_stream(self, held: ExitStack, device: Device, stream: Stream) -> Prepare:
        """PyTorch's view of the stream."""
        with self.failing("ExternalStream", "a stream"):
            external = torch.cuda.ExternalStream(stream.handle, device=self._device)
        return partial(self._execution, external)

    def _execution(self, stream: Any, held: ExitStack, n: int, addresses: Mapping[str, int]) -> _Execution:
        """Tensors in the memory of the caller's for n images."""
        at = f"batch {n}"
        with self.failing("as_tensor", at):
            tensors = {
                name: view(addresses[name], (n, *tensor.shape), tensor.dtype, self._device)
                for name, tensor in self.tensors.items()
            }
        execution = _Execution(self, stream, tensors, at)
        held.callback(execution.close)
        return execution

    def failing(self, call: str, at: str) -> _Failing:
        """Turns exceptions of PyTorch into a DeviceError."""
        return _Failing(f"{self.path}: PyTorch", call, at)


class _Failing:
    """A context that turns exceptions of `who` into a DeviceError."""

    def __init__(self, who: str, call: str, at: str) -> None:
        self._who, self._call, self._at = who, call, at

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, YolactError):
            raise device_failure(self._who, self._call, first_line(error), self._at) from error


class _Execution:
    """The network for one batch size on one stream, as a CUDA graph from a thread's second run on."""

    def __init__(self, network: TorchNetwork, stream: Any, tensors: dict[str, torch.Tensor], at: str) -> None:
        self._network, self._stream, self._at = network, stream, at
        self._images, self._outputs = tensors.pop(INPUT), tensors
        self._graph: Any = None
        # cuDNN's handles, and the algorithms that it chose, belong to threads: what has not run plainly on a
        # thread cannot be captured there.
        self._ran = threading.local()

    def queue(self) -> None:
        """Put the network on the stream."""
        with (
            self._network.failing("the network", self._at),
            torch.inference_mode(),
            torch.cuda.stream(self._stream),
            exact_convolutions(True),
        ):
            if self._graph is None and self._network.graphs and hasattr(self._ran, "here"):
                self._capture()
            if self._graph is not None:
                self._graph.replay()
            else:
                self._compute()
                self._ran.here = True

    def capturable(self) -> bool:
        """Never: it captures its own graphs."""
        return False

    def _compute(self) -> None:
        for name, value in self._network.compute(self._images).items():
            self._outputs[name].copy_(value)

    def _capture(self) -> None:
        """Capture a graph; after the first failure, networks are launched without graphs."""
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do at the same time, such as allocating, does not disturb this capture.
            # `torch.cuda.graph` would wait for the whole GPU, which may not be done while others capture.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._compute()
            finally:
                graph.capture_end()
        except RuntimeError as error:
            if self._network.graphs:
                log.warning("no CUDA graphs of the network, launching one by one: %s", first_line(error))
            self._network.graphs = False
        else:
            self._graph = graph

    def close(self) -> None:
        """Release the graph and its memory."""
        graph, self._graph = self._graph, None
        self._outputs = {}
        if graph is not None:
            graph.reset()


class _Memory:
    """Memory on the GPU, as PyTorch takes it from other libraries."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": dtype.str, "data": (address, False), "strides": None, "version": 2,
        }  # fmt: skip


def view(address: int, shape: tuple[int, ...], dtype: np.dtype, device: torch.device) -> torch.Tensor:
    """A tensor in memory of somebody else's, who keeps it."""
    return torch.as_tensor(_Memory(address, shape, dtype), device=device)
