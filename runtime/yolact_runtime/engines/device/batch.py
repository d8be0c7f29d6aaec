"""Everything that a call with a certain number of images launches, prepared once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from yolact_runtime.cuda.launch import LoadedPlan
from yolact_runtime.cuda.plans.plan import Plan
from yolact_runtime.cuda.resource import Resource
from yolact_runtime.engines.device.buffers import ImageBuffers, SlotBuffers
from yolact_runtime.engines.outputs import INPUT
from yolact_runtime.engines.tensorrt.network import Model


class Batch(Resource):
    """What a slot launches for n images; opened and closed with the context current.

    Network and detection are ready once it is open. Resizing and masks also need image buffers: `connect`
    prepares them.

    Attributes:
        n: Number of images.
        header: The slot's header, laid out for n images.
        summary: The slot's summary, laid out for n images.
        connected: Whether `run` and `stages` can be called.
    """

    def __init__(self, model: Model, buffers: SlotBuffers, n: int) -> None:
        super().__init__()
        self.n = n
        self._model, self._buffers, self._stream = model, buffers, buffers.stream
        self.header = buffers.header.repack(model.plan.header(n))
        self.summary = buffers.summary.repack(model.plan.summary(n))
        self._addresses = {**buffers.addresses, **self.header.addresses, **self.summary.addresses}
        self._addresses.setdefault("mask_scores", self._addresses["scores"])
        self.connected = False
        self._graph: Callable[[], None] | None = None
        self._graph_held = ExitStack()
        self._runs = 0
        self._at = f"batch {n}"

    def _open(self) -> None:
        model, plan = self._model, self._model.plan
        addresses = {name: self._addresses[plan.buffer_name(name)] for name in plan.tensors}
        scratch, stream = self._buffers.scratch, self._stream.handle
        self._execution = model.execution(self._held, self.n, scratch, addresses, stream)
        detection = plan.detection(self.n)
        self._detection = None if detection is None else self._load(self._held, detection, self._addresses)
        self._held.callback(self.disconnect)

    def _load(self, held: ExitStack, plan: Plan, addresses: dict[str, int]) -> LoadedPlan:
        memory = {buffer.name: addresses[buffer.name] for buffer in plan.buffers}
        return held.enter_context(LoadedPlan(self._model.device, plan, memory, self._model.kernels))

    def connect(self, images: ImageBuffers) -> None:
        """Prepare resizing and masks with these buffers, until `disconnect`.

        Raises:
            DeviceError: there is not enough memory.
        """
        plan, n = self._model.plan, self.n
        addresses, held = self._addresses | images.addresses, self._graph_held
        self._resize = self._staged = None
        if plan.resizes:
            resize = plan.resize(n, n * 3 * images.height * images.width)
            self._resize = self._load(held, resize, addresses)
        else:
            self._staged = self._buffers.staging()[0][:n]
        self._visible = self._load(held, plan.visible(n), addresses)
        # Only the detections that a result can show get a mask.
        replaced = {"count": addresses["visible"], "boxes": addresses["mask_boxes"]}
        masks = plan.masks(n, images.height, images.width)
        self._masks = self._load(held, masks, addresses | replaced)
        self._runs, self.connected = 0, True

    def disconnect(self) -> None:
        """Forget the image buffers, and the graph that uses them."""
        self.connected, self._graph = False, None
        self._graph_held.close()

    def queue_network(self) -> None:
        """Put the network on the stream.

        Raises:
            DeviceError: TensorRT failed.
        """
        self._execution.queue(self._stream.handle)

    def queue_detection(self) -> None:
        """Put detection on the stream, unless the engine detects.

        Raises:
            DeviceError: the driver failed.
        """
        if self._detection is not None:
            self._detection.run(self._stream)

    def stages(self) -> list[tuple[str, Callable[[], None]]]:
        """Names and functions of what a call puts on the stream, from header upload to summary download.

        It depends on the images only through memory, so it can be captured. Each raises DeviceError if
        TensorRT or a launch fails, and pycuda's exceptions if a copy does.
        """
        return [
            ("upload", self._queue_upload),
            ("preprocess", self._queue_resize),
            ("network", self.queue_network),
            ("detect", self.queue_detection),
            ("masks", self._queue_masks),
            ("download", lambda: self.summary.download(self._stream)),
        ]

    def _queue_upload(self) -> None:
        self.header.upload(self._stream)
        if self._staged is not None:
            self._stream.upload(self._addresses[INPUT], self._staged)

    def _queue_resize(self) -> None:
        if self._resize is not None:
            self._resize.run(self._stream)

    def _queue_masks(self) -> None:
        self._visible.run(self._stream)
        self._masks.run(self._stream)

    def _queue_all(self) -> None:
        for _, stage in self.stages():
            stage()

    def _queue_for_graph(self) -> None:
        with self._model.device.failing(self._at):
            self._queue_all()

    def run(self) -> None:
        """Put all stages on the stream, as a CUDA graph from the second time on.

        The first run is plain: the libraries initialise things in it, which cannot be captured.

        Raises:
            DeviceError: TensorRT or the driver failed.
        """
        graphs, handle = self._model.graphs, self._stream.handle
        if self._graph is None and self._runs > 0 and graphs.enabled and self._execution.capturable(handle):
            self._graph = graphs.capture(self._graph_held, handle, self._queue_for_graph, self._at)
        if self._graph is not None:
            self._graph()
        else:
            self._queue_all()
        self._runs += 1
