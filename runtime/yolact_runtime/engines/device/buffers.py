"""The memory of one slot, on the GPU and pinned on the host: `docs/tensorrt.md` has a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from yolact_runtime.cuda.device import Device, Stream
from yolact_runtime.cuda.plans.plan import Buffer
from yolact_runtime.cuda.resource import Resource
from yolact_runtime.engines.device.model import Model
from yolact_runtime.engines.device.network import Prepare
from yolact_runtime.engines.outputs import INPUT

_ALIGNED = 256  # bytes; plans and networks need such addresses


class PackedBuffers:
    """Small arrays packed into one device allocation and one pinned allocation: one copy moves them all.

    Args:
        address: The device memory.
        pinned: (bytes,) uint8, the pinned memory.
        buffers: The arrays.

    Attributes:
        addresses: Device addresses, by name.
        arrays: Views of the pinned memory, by name.
    """

    def __init__(self, address: int, pinned: np.ndarray, buffers: Sequence[Buffer]) -> None:
        self.addresses: dict[str, int] = {}
        self.arrays: dict[str, np.ndarray] = {}
        end = 0
        for buffer in buffers:
            self.addresses[buffer.name] = address + end
            array = pinned[end : end + buffer.nbytes].view(buffer.dtype)
            self.arrays[buffer.name] = array.reshape(buffer.shape)
            end += _aligned(buffer)
        self._address, self._pinned = address, pinned[:end]

    @classmethod
    def allocate(cls, device: Device, held: ExitStack, name: str, buffers: Sequence[Buffer]) -> PackedBuffers:
        """New memory that is large enough for `buffers`; `held` frees it.

        Raises:
            DeviceError: there is not enough memory.
        """
        nbytes = sum(map(_aligned, buffers))
        address = device.allocate(held, name, nbytes)
        return cls(address, device.pinned(held, name, (nbytes,), np.uint8), buffers)

    def repack(self, buffers: Sequence[Buffer]) -> PackedBuffers:
        """The same memory laid out for fewer or smaller buffers."""
        return PackedBuffers(self._address, self._pinned, buffers)

    def upload(self, stream: Stream) -> None:
        """Queue the copy to the device."""
        stream.upload(self._address, self._pinned)

    def download(self, stream: Stream) -> None:
        """Queue the copy from the device."""
        stream.download(self._pinned, self._address)


def _aligned(buffer: Buffer) -> int:
    return -(-buffer.nbytes // _ALIGNED) * _ALIGNED


class ImageBuffers(Resource):
    """The buffers that depend on the size of the images, for the largest batch of the profile.

    Attributes:
        height: Of the tallest image that fits, in pixels.
        width: Of the widest image that fits, in pixels.
        addresses: Device addresses, by name.
        pixels: Pinned (bytes,) uint8, for images that the GPU resizes.
        edges: Pinned (N, capacity) int32, for the edges of masks.
    """

    pixels: np.ndarray
    edges: np.ndarray

    def __init__(self, model: Model, height: int, width: int) -> None:
        super().__init__()
        self._model = model
        self.height, self.width = height, width
        self.addresses: dict[str, int] = {}

    def _open(self) -> None:
        """Allocate what masks need, and pixels if the GPU resizes."""
        device, plan = self._model.device, self._model.plan
        n = plan.metadata.max_batch
        masks = plan.masks(n, self.height, self.width)
        edges = next(buffer for buffer in masks.outputs if buffer.name == "edges")
        shown = (buffer for buffer in plan.visible(n).outputs if buffer.name == "mask_boxes")
        for buffer in (*masks.workspace, edges, *shown):
            self.addresses[buffer.name] = device.allocate(self._held, buffer.name, buffer.nbytes)
        self.edges = device.pinned(self._held, "edges", edges.shape, edges.dtype)
        if plan.resizes:
            capacity = n * 3 * self.height * self.width
            self.addresses["pixels"] = device.allocate(self._held, "pixels", capacity)
            self.pixels = device.pinned(self._held, "pixels", (capacity,), np.uint8)


class SlotBuffers(Resource):
    """The stream and the memory of one slot, for the largest batch of the profile.

    Attributes:
        stream: Everything of the slot runs on it.
        addresses: Device addresses of the network's tensors and of detection's buffers, by name in the plans.
        prepare: Prepares executions of the network on the stream.
        header: What a call uploads besides pixels.
        summary: What a call downloads besides edges or prototypes.
    """

    stream: Stream
    prepare: Prepare
    header: PackedBuffers
    summary: PackedBuffers

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model
        self.addresses: dict[str, int] = {}
        self._staging: tuple[np.ndarray, np.ndarray] | None = None

    def _open(self) -> None:
        """Open the stream and allocate what every call needs."""
        device, plan, held = self._model.device, self._model.plan, self._held
        n = plan.metadata.max_batch
        header, summary = plan.header(n), plan.summary(n)
        packed = {buffer.name for buffer in summary}
        sizes = {plan.buffer_name(tensor.name): tensor.nbytes(n) for tensor in plan.tensors.values()}
        if detection := plan.detection(n):
            sizes |= {buffer.name: buffer.nbytes for buffer in detection.workspace}
        self.stream = device.open_stream(held)
        for name, nbytes in sizes.items():
            if name not in packed:
                self.addresses[name] = device.allocate(held, name, nbytes)
        if self._model.priors is not None:
            self.addresses["priors"] = self._model.priors
        self.prepare = self._model.network.on_stream(held, device, self.stream)
        self.header = PackedBuffers.allocate(device, held, "header", header)
        self.summary = PackedBuffers.allocate(device, held, "summary", summary)

    def staging(self) -> tuple[np.ndarray, np.ndarray]:
        """Pinned images (N, H, W, 3) that the host resized and prototypes (N, Hp, Wp, M); allocated once.

        Raises:
            DeviceError: there is not enough memory.
        """
        if self._staging is None:
            tensors, n = self._model.plan.tensors, self._model.plan.metadata.max_batch
            with ExitStack() as held:
                images, prototypes = (
                    self._model.device.pinned(held, name, (n, *tensors[name].shape), tensors[name].dtype)
                    for name in (INPUT, "prototypes")
                )
                self._staging = images, prototypes
                self._held.push(held.pop_all())
        return self._staging
