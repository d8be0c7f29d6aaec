"""Everything that a call with a certain number of images launches, prepared once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from yolact_runtime.cuda.launch import LoadedPlan
from yolact_runtime.cuda.plans.plan import Plan
from yolact_runtime.cuda.resource import Resource
from yolact_runtime.engines.device.buffers import ImageBuffers, SlotBuffers
from yolact_runtime.engines.device.model import Model
from yolact_runtime.engines.device.network import WANTED
from yolact_runtime.engines.device.segment import Segment
from yolact_runtime.engines.outputs import INPUT


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
        self._segments: list[Segment] = []
        self._images_held = ExitStack()

    def _open(self) -> None:
        plan = self._model.plan
        addresses = {name: self._addresses[plan.buffer_name(name)] for name in plan.tensors}
        addresses[WANTED] = self._addresses[WANTED]
        self._execution = self._buffers.prepare(self._held, self.n, addresses)
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
        addresses, held = self._addresses | images.addresses, self._images_held
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
        self._segments = self._make_segments()
        self.connected = True

    def disconnect(self) -> None:
        """Forget the image buffers, and the graphs that use them."""
        self.connected = False
        self._segments.clear()
        self._images_held.close()

    def queue_network(self) -> None:
        """Put the network on the stream.

        Raises:
            DeviceError: the network's library failed.
        """
        self._execution.queue()

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
        the network's library or a launch fails, and pycuda's exceptions if a copy does.
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

    def _make_segments(self) -> list[Segment]:
        """The stages in as few CUDA graphs as the network allows."""
        model, (upload, resize, network, *rest) = self._model, [stage for _, stage in self.stages()]
        execution, at = self._execution, f"batch {self.n}"
        if model.network.in_graphs:
            stages, ready = [upload, resize, network, *rest], execution.capturable
            return [Segment(model, self._images_held, self._stream, stages, at, ready)]
        around = ([upload, resize], f"before the network, {at}"), (rest, f"after the network, {at}")
        before, after = (Segment(model, self._images_held, self._stream, *part) for part in around)
        return [before, Segment(model, self._images_held, self._stream, [network], at, lambda: False), after]

    def run(self) -> None:
        """Put all stages on the stream, as CUDA graphs from the second time on.

        Raises:
            DeviceError: the network's library or the driver failed.
        """
        for segment in self._segments:
            segment.run()
