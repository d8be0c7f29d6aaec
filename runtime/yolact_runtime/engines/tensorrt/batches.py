"""Everything that a call with so many images launches, made ready once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolact_runtime.cuda.device import DevicePlan, Kernels
from yolact_runtime.cuda.graphs import Graphs
from yolact_runtime.cuda.memory import PycudaDevice, Stream
from yolact_runtime.cuda.plans.plan import Plan
from yolact_runtime.cuda.resource import Owner
from yolact_runtime.engines.outputs import INPUT
from yolact_runtime.engines.tensorrt.blocks import Block
from yolact_runtime.engines.tensorrt.chain import NATIVE_NAMES
from yolact_runtime.engines.tensorrt.model import Model


@dataclass
class Shared:
    """What all slots of an engine use.

    Attributes:
        device: The GPU.
        model: The engine.
        kernels: Those of all its plans, loaded.
        graphs: Captures.
        priors: Address of the priors, where detection runs after the engine.
        most_pixels: Of one image that masks are made for on the GPU: it had no room for more.
    """

    device: PycudaDevice
    model: Model
    kernels: Kernels
    graphs: Graphs
    priors: int | None
    most_pixels: float = math.inf


@dataclass(frozen=True)
class Memory:
    """What a slot lends to its batches.

    Attributes:
        stream: The slot's.
        addresses: Of device buffers by name, each large enough for the profile's most images.
        scratch: Address of what executions need besides.
        header: What a call uploads besides pixels.
        summary: What a call downloads besides edges or prototypes.
    """

    stream: Stream
    addresses: Mapping[str, int]
    scratch: int
    header: Block
    summary: Block


class Batch(Owner):
    """Network and detection for n images.

    An execution context of its own: one that a CUDA graph was captured from must not be changed any more.

    Attributes:
        n: Images.
        header: Of n images.
        summary: Of n images.
    """

    def __init__(self, shared: Shared, memory: Memory, n: int) -> None:
        super().__init__()
        self.n = n
        self._shared, self._lent = shared, memory
        self._stream = memory.stream
        chain = shared.model.chain
        self.header = memory.header.part(chain.header(n))
        self.summary = memory.summary.part(chain.summary(n))
        self._addresses = {**memory.addresses, **self.header.addresses, **self.summary.addresses}
        if "mask_scores" not in self.summary.addresses:
            self._addresses["mask_scores"] = self._addresses["scores"]

    def _open(self) -> None:
        model, chain = self._shared.model, self._shared.model.chain
        names = NATIVE_NAMES if model.metadata.detect == "native" else {}
        self._execution = model.execution(
            self._held,
            self.n,
            self._lent.scratch,
            {name: self._addresses[names.get(name, name)] for name in chain.tensors},
            self._stream.handle,
        )
        plan = chain.detection(self.n)
        self._detection = None if plan is None else self._load(plan)

    def _load(self, plan: Plan, **others: int) -> DevicePlan:
        addresses = {buffer.name: self._addresses[buffer.name] for buffer in plan.buffers}
        loaded = self._shared.device.load(plan, addresses | others, self._shared.kernels)
        self._held.enter_context(loaded)
        return loaded

    def queue_network(self) -> None:
        """Put the network on the stream.

        Raises:
            DeviceError: TensorRT failed.
        """
        self._execution.queue(self._stream.handle)

    def queue_detection(self) -> None:
        """Put detection on the stream, where the engine has not done it.

        Raises:
            DeviceError: the driver failed.
        """
        if self._detection is not None:
            self._detection.run(self._stream.handle)


class TracedBatch(Batch):
    """From images of any size on the GPU to the edges of their masks there.

    Args:
        room: Addresses of what depends on the size of the images.
        size: Height and width of the largest image that there is room for.
        staged: Where images that the host resized come from; None where the GPU resizes them.
    """

    def __init__(
        self,
        shared: Shared,
        memory: Memory,
        n: int,
        room: Mapping[str, int],
        size: tuple[int, int],
        staged: np.ndarray | None,
    ) -> None:
        super().__init__(shared, memory, n)
        self._addresses |= room
        self._size, self._staged = size, None if staged is None else staged[:n]
        self._graph: Any = None
        self._runs = 0
        self._at = f"batch {n}"

    def _open(self) -> None:
        super()._open()
        chain = self._shared.model.chain
        height, width = self._size
        self._resize = None
        if self._staged is None:
            self._resize = self._load(chain.resize(self.n, self.n * 3 * height * width))
        self._wanted = self._load(chain.wanted(self.n))
        # Only what a result can show gets a mask.
        masks = chain.masks(self.n, height, width)
        self._masks = self._load(masks, count=self._addresses["wanted"])

    def stages(self) -> list[tuple[str, Callable[[], None]]]:
        """What a call puts on the stream, from the upload of the header to the download of the summary.

        None of it depends on the images but through memory, so it can be captured. Each raises DeviceError
        where TensorRT or the driver fails; what pycuda raises comes as it is.
        """
        return [
            ("upload", self._queue_upload),
            ("preprocess", self._queue_resize),
            ("network", self.queue_network),
            ("detect", self.queue_detection),
            ("masks", self._queue_masks),
            ("download", self._queue_download),
        ]

    def _queue_upload(self) -> None:
        self.header.upload(self._stream)
        if self._staged is not None:
            self._stream.upload(self._addresses[INPUT], self._staged)

    def _queue_resize(self) -> None:
        if self._resize is not None:
            self._resize.run(self._stream.handle)

    def _queue_masks(self) -> None:
        self._wanted.run(self._stream.handle)
        self._masks.run(self._stream.handle)

    def _queue_download(self) -> None:
        self.summary.download(self._stream)

    def queue(self) -> None:
        """Put all stages on the stream."""
        for _, stage in self.stages():
            stage()

    def run(self) -> None:
        """As `queue`, by a CUDA graph from the second time on.

        The first run is plain: the libraries set up what they do only once, which cannot be captured.

        Raises:
            DeviceError: as in `stages`.
        """
        graphs = self._shared.graphs
        if self._graph is None and self._runs > 0 and graphs.enabled:
            handle = self._stream.handle
            if self._execution.capturable(handle):
                self._graph = graphs.capture(self._held, handle, self._queue_in_graph, self._at)
        if self._graph is not None:
            graphs.launch(self._graph, self._stream.handle, self._at)
        else:
            self.queue()
        self._runs += 1

    def _queue_in_graph(self) -> None:
        with self._shared.device.failing(self._at):
            self.queue()
