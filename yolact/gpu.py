"""Checkpoints on the GPU: the network in PyTorch between the runtime's kernels, on the same stream."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolact.config import Config
from yolact.engine import TorchEngine, describe, exact_convolutions, pick_device
from yolact.model import Yolact, YolactOutput
from yolact.model.backbone import DeformConv
from yolact.model.detect import detect
from yolact_runtime.cuda.device import Device, Stream, check_packages
from yolact_runtime.cuda.gpu import only_the_first
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.device.engine import DeviceEngine
from yolact_runtime.engines.device.network import WANTED, Network, Prepare, Tensor
from yolact_runtime.engines.outputs import INPUT, GraphOutputs
from yolact_runtime.engines.threads import AUTO
from yolact_runtime.errors import DeviceError, UsageError, YolactError, device_failure, first_line
from yolact_runtime.metadata import InputSize, Metadata

log = logging.getLogger(__name__)

# Graphs whose capture failed. PyTorch's allocator may ask them to the end of the process which allocations
# are theirs: not in all versions does `reset` end that.
_FAILED: list[Any] = []


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
    """Open a checkpoint; on the first visible GPU with the runtime's kernels around PyTorch's network.

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
        return only_the_first(device.index, "--device cuda")
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

    Deformable convolutions run on CUDA's default stream, whichever is the current one: torchvision launches
    them there. A network that has some runs there as a whole, between events, and without graphs.

    Args:
        path: The file, for messages.
        engine: The checkpoint, opened on the GPU.
        metadata: Says what the network returns.
        graphs: Whether to capture graphs.
    """

    in_graphs = False
    # On the GPU, as long as it is open. `_word` and `_bit` (C,) say where in `wanted` the bit of a class is.
    _model: Yolact | None
    _normalise: Any
    _word: Any
    _bit: Any

    def __init__(self, path: Path, engine: TorchEngine, metadata: Metadata, graphs: bool) -> None:
        super().__init__()
        self.path, self.title, self.precision = path, engine.name, metadata.precision
        self._metadata, self._device = metadata, engine.device
        self._model, self._normalise = engine.model, engine.normalise
        self._half = metadata.precision == "fp16"
        self.on_default = any(isinstance(module, DeformConv) for module in engine.model.modules())
        self.graphs = graphs and not self.on_default

    def _open(self) -> None:
        """Run it once, for the shapes of its outputs, and wait for the weights."""
        meta = self._metadata
        images = torch.zeros(1, *meta.input_shape, 3, dtype=getattr(torch, meta.input_dtype))
        classes = torch.arange(len(meta.class_names), dtype=torch.int32)
        self._held.callback(self._forget)
        with self.failing("the first run", "batch 1"), torch.inference_mode(), exact_convolutions(True):
            self._word, self._bit = (value.to(self._device) for value in (classes // 32, classes % 32))
            images = images.to(self._device)
            wanted = torch.full((-(-len(classes) // 32),), -1, dtype=torch.int32, device=self._device)
            found = {INPUT: images, **self.compute(images, wanted)}
            torch.cuda.synchronize(self._device)
        self.tensors = {
            name: Tensor(name, tuple(value.shape[1:]), np.dtype(str(value.dtype).removeprefix("torch.")))
            for name, value in found.items()
        }

    def _forget(self) -> None:
        """Free the weights, and what PyTorch keeps for streams that are closed: others cannot use it."""
        self._model = self._normalise = self._word = self._bit = None
        with suppress(RuntimeError):
            torch.cuda.empty_cache()

    def compute(self, images: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs of the graph for images (n, H, W, 3), by name.

        Args:
            images: As the metadata says.
            wanted: int32, a bit for each class; used by a network that detects.
        """
        model = self._model
        assert model is not None
        x = self._normalise(images)
        if self._half:
            x = x.to(torch.half, memory_format=torch.channels_last)
        output: YolactOutput = model(x)
        if self._metadata.detect == "runtime":
            return output._asdict()
        # With fixed shapes, as in an exported graph; what is wanted is known on the GPU only.
        classes = (wanted[self._word] >> self._bit & 1).bool()  # (C,)
        output = YolactOutput(*(value.float() for value in output))
        values = detect(model, output, compact=False, classes=classes)._asdict()
        return {name: values[name] for name in GraphOutputs(self._metadata, self.path).names}

    def on_stream(self, held: ExitStack, device: Device, stream: Stream) -> Prepare:
        """PyTorch's view of the stream, which comes after what PyTorch has queued until now."""
        with self.failing("ExternalStream", "a stream"):
            external = torch.cuda.ExternalStream(stream.handle, device=self._device)
            external.wait_stream(torch.cuda.current_stream(self._device))
            shared = _Stream(external, self._device, self.on_default, self.graphs)
        held.callback(self._leave, external)
        return partial(self._execution, shared)

    def _leave(self, stream: Any) -> None:
        """Wait for a stream that closes: the weights may be freed, and their memory used on any other."""
        try:
            stream.synchronize()
        except RuntimeError as error:  # of a GPU that has failed
            log.debug("%s", first_line(error))

    def _execution(
        self, stream: _Stream, held: ExitStack, n: int, addresses: Mapping[str, int]
    ) -> _Execution:
        """Tensors in the memory of the caller's for n images."""
        at = f"batch {n}"
        with self.failing("as_tensor", at):
            tensors = {
                name: view(addresses[name], (n, *tensor.shape), tensor.dtype, self._device)
                for name, tensor in self.tensors.items()
            }
            words = (-(-len(self._metadata.class_names) // 32),)
            wanted = view(addresses[WANTED], words, np.dtype(np.int32), self._device)
        execution = _Execution(self, stream, tensors, wanted, at)
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


class _Stream:
    """A stream of the caller's for PyTorch, and the memory of all graphs on it.

    They share one pool: it has the size that the largest batch needs, however many batch sizes there are.
    That is safe, because the graphs of a stream are replayed one after the other, and none leaves anything in
    the pool: what it returns is copied into the caller's memory within the graph.
    """

    def __init__(self, external: Any, device: torch.device, on_default: bool, graphs: bool) -> None:
        self._external, self._device, self._on_default = external, device, on_default
        self.pool = torch.cuda.graph_pool_handle() if graphs else None

    def entered(self) -> AbstractContextManager[None]:
        """What PyTorch launches within is on the stream, or in its place on the default stream."""
        return self._in_its_place() if self._on_default else torch.cuda.stream(self._external)

    @contextmanager
    def _in_its_place(self) -> Iterator[None]:
        default = torch.cuda.default_stream(self._device)
        default.wait_stream(self._external)
        try:
            with torch.cuda.stream(default):
                yield
        finally:
            self._external.wait_stream(default)


class _Execution:
    """The network for one batch size on one stream, as a CUDA graph from a thread's second run on."""

    def __init__(
        self,
        network: TorchNetwork,
        stream: _Stream,
        tensors: dict[str, torch.Tensor],
        wanted: torch.Tensor,
        at: str,
    ) -> None:
        self._network, self._stream, self._wanted, self._at = network, stream, wanted, at
        self._images, self._outputs = tensors.pop(INPUT), tensors
        self._graph: Any = None
        # cuDNN's handles, and the algorithms that it chose, belong to threads: what has not run plainly on a
        # thread cannot be captured there.
        self._ran = threading.local()

    def queue(self) -> None:
        """Put the network on the stream."""
        with self._network.failing("the network", self._at), torch.inference_mode(), self._stream.entered():
            if self._graph is not None:
                self._graph.replay()
                return
            with exact_convolutions(True):
                if self._network.graphs and hasattr(self._ran, "here"):
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
        for name, value in self._network.compute(self._images, self._wanted).items():
            self._outputs[name].copy_(value)

    def _capture(self) -> None:
        """Capture a graph; after the first failure, networks are launched without graphs."""
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do at the same time, such as allocating, does not disturb this capture.
            # `torch.cuda.graph` would wait for the whole GPU, which may not be done while others capture.
            graph.capture_begin(pool=self._stream.pool, capture_error_mode="thread_local")
            try:
                self._compute()
            except BaseException:
                with suppress(RuntimeError):  # it would hide the reason
                    graph.capture_end()
                raise
            graph.capture_end()
        except BaseException as error:
            _FAILED.append(graph)
            with suppress(RuntimeError):
                graph.reset()
            if not isinstance(error, RuntimeError):
                raise
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
    tensor = torch.as_tensor(_Memory(address, shape, dtype), device=device)
    if tensor.data_ptr() != address:
        raise RuntimeError(f"PyTorch copied memory of {device} instead of using it")
    return tensor
