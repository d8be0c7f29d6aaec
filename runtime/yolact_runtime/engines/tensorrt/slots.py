"""What one call needs on the GPU, allocated once: as many slots as calls may run at the same time.

A slot has a stream, memory for the largest batch of the profile, and, once images came, room for them. On
its stream a call is: upload, resize, network, detection, masks, download. Other slots do the same on theirs,
so one call's copies run beside another's network.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from yolact_runtime.cuda.memory import Event, Stream, pycuda_failure
from yolact_runtime.cuda.plans.masks import read_regions
from yolact_runtime.cuda.plans.preprocess import pack
from yolact_runtime.cuda.resource import Owner
from yolact_runtime.detections import Detections
from yolact_runtime.engines.outputs import INPUT
from yolact_runtime.engines.tensorrt.batches import Batch, Memory, Shared, TracedBatch
from yolact_runtime.engines.tensorrt.blocks import Block
from yolact_runtime.engines.tensorrt.chain import NATIVE_NAMES
from yolact_runtime.errors import DeviceError, UsageError
from yolact_runtime.masks import Region

log = logging.getLogger(__name__)

# COCO's images fit into that without growing; sides grow in whole steps.
_FIRST_SIDE = 640
_STEP = 64
# Marks where no stage ends.
_BREAK = ""


class Room(Owner):
    """What depends on the size of the images, for the most images of the profile.

    Attributes:
        height: Of the tallest image that fits, in pixels.
        width: Of the widest one.
        addresses: Of device buffers.
        pixels: Pinned, where the images are packed.
        edges: Pinned (N, capacity), where edges come to.
    """

    pixels: np.ndarray
    edges: np.ndarray

    def __init__(self, shared: Shared, height: int, width: int) -> None:
        super().__init__()
        self._shared = shared
        self.height, self.width = height, width
        self.addresses: dict[str, int] = {}

    def _open(self) -> None:
        device, chain = self._shared.device, self._shared.model.chain
        n = chain.metadata.max_batch
        plan = chain.masks(n, self.height, self.width)
        edges = next(buffer for buffer in plan.outputs if buffer.name == "edges")
        for buffer in (*plan.workspace, edges):
            self.addresses[buffer.name] = device.allocate(self._held, buffer.name, buffer.nbytes)
        self.edges = device.pinned(self._held, "edges", edges.shape, edges.dtype)
        if chain.resizes:
            capacity = n * 3 * self.height * self.width
            self.addresses["pixels"] = device.allocate(self._held, "pixels", capacity)
            self.pixels = device.pinned(self._held, "pixels", (capacity,), np.uint8)


@dataclass(frozen=True)
class Staging:
    """Pinned memory for images that the host resized, and for prototypes that it needs.

    Attributes:
        images: (N, S, S, 3).
        prototypes: (N, Hp, Wp, M).
    """

    images: np.ndarray
    prototypes: np.ndarray


class Slot(Owner):
    """Room for one call at a time; opened, used and closed with the context current.

    Args:
        shared: Of the engine.
        number: For error messages.
    """

    def __init__(self, shared: Shared, number: int) -> None:
        super().__init__()
        self._shared, self._number = shared, number
        self._chain = shared.model.chain
        self._staging: Staging | None = None
        self._memories = ExitStack()  # of what is staged
        self._room: Room | None = None
        self._batches: dict[int, Batch] = {}
        self._traced: dict[int, TracedBatch] = {}
        self._doing = ""

    def _open(self) -> None:
        device, model, chain = self._shared.device, self._shared.model, self._chain
        n = chain.metadata.max_batch
        summary = chain.summary(n)
        names = NATIVE_NAMES if chain.metadata.detect == "native" else {}
        inside = {buffer.name for buffer in summary}
        self._stream: Stream = device.open_stream(self._held)
        addresses = {
            tensor.name: device.allocate(self._held, tensor.name, tensor.nbytes(n))
            for tensor in chain.tensors.values()
            if names.get(tensor.name, tensor.name) not in inside
        }
        if plan := chain.detection(n):
            for buffer in plan.workspace:
                addresses[buffer.name] = device.allocate(self._held, buffer.name, buffer.nbytes)
        if self._shared.priors is not None:
            addresses["priors"] = self._shared.priors
        self._memory = Memory(
            self._stream,
            addresses,
            device.allocate(self._held, "TensorRT's scratch", model.scratch_bytes),
            Block(device, self._held, "header", chain.header(n)),
            Block(device, self._held, "summary", summary),
        )
        self._held.callback(self._drop)

    def detect(self, batch: np.ndarray) -> Detections:
        """Detections of images that the host resized, with their prototypes, as arrays of their own.

        Args:
            batch: (n, S, S, 3) of the input's dtype.

        Raises:
            DeviceError: the GPU failed.
        """
        with self._failing():
            return self._detect(batch)

    def _detect(self, batch: np.ndarray) -> Detections:
        n, stream = len(batch), self._stream
        staging = self._stage()
        if n not in self._batches:
            self._batches[n] = Batch(self._shared, self._memory, n).__enter__()
        one = self._batches[n]
        staging.images[:n] = batch
        self._doing = f"uploading {n} images"
        stream.upload(self._memory.addresses[INPUT], staging.images[:n])
        self._doing = "running the network"
        one.queue_network()
        one.queue_detection()
        self._doing = "downloading detections"
        one.summary.download(stream)
        stream.download(staging.prototypes[:n], self._memory.addresses["prototypes"])
        self._doing = "waiting for detections"
        stream.synchronize()
        # The memory is used again by the next call.
        found = {name: view.copy() for name, view in one.summary.views.items()}
        found["prototypes"] = staging.prototypes[:n].copy()
        outputs = self._shared.model.outputs
        if self._chain.metadata.detect == "native":
            return outputs.detections([found[NATIVE_NAMES.get(name, name)] for name in outputs.names])
        detections = Detections(
            found["count"], found["boxes"], found["scores"], found["classes"], found["kept_coefficients"],
            found["prototypes"].astype(np.float32, copy=False), found["scores"].copy(),
        )  # fmt: skip
        outputs.rescore(detections)
        return detections

    def predict(
        self,
        images: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
    ) -> tuple[Detections, list[list[Region]]] | None:
        """Detections that a result can show, and their masks.

        Args:
            images: (H, W, 3) uint8 of any size; (S, S, 3) float32 where the host resizes.
            sizes: Height and width of each.
            score_threshold: Rows have to score more.
            top_k: The most rows to show.

        Returns:
            Views that the next call overwrites, `count` being the rows to look at; and regions of their own.
            None where the GPU has no room for such images or masks.

        Raises:
            DeviceError: the GPU failed.
        """
        with self._failing():
            return self._predict(images, sizes, score_threshold, top_k)

    def stage_times(
        self,
        images: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
    ) -> dict[str, float] | None:
        """Run a call stage by stage, without a graph, and time each on the GPU.

        Returns:
            Milliseconds; None as for `predict`.

        Raises:
            DeviceError: the GPU failed.
        """
        marks: list[tuple[str, Event]] = []
        with self._failing(), ExitStack() as held:

            def mark(name: str) -> None:
                marks.append((name, self._shared.device.open_event(held)))
                marks[-1][1].record(self._stream)

            if self._predict(images, sizes, score_threshold, top_k, mark) is None:
                return None
            self._stream.synchronize()
            times: dict[str, float] = {}
            for (_, earlier), (name, later) in itertools.pairwise(marks):
                if name != _BREAK:
                    times[name] = times.get(name, 0.0) + later.milliseconds_since(earlier)
        return times

    def _predict(
        self,
        images: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
        mark: Callable[[str], None] | None = None,
    ) -> tuple[Detections, list[list[Region]]] | None:
        room = self._room_for(sizes)
        if room is None:
            return None
        count, meta = len(images), self._chain.metadata
        n = max(count, meta.min_batch)
        one = self._traced.get(n) or self._trace(n, room)
        header, found, stream = one.header.views, one.summary.views, self._stream
        header["sizes"][...] = 1
        header["sizes"][:count] = sizes
        header["limits"][0] = score_threshold
        header["limits"][1] = min(top_k, meta.max_detections)
        if mark:
            mark(_BREAK)
        if self._chain.resizes:
            pack(images, room.pixels, header["table"])
            used = sum(image.size for image in images)
            self._doing = "uploading pixels"
            stream.upload(room.addresses["pixels"], room.pixels[:used])
        else:
            staged = self._stage().images
            for index in range(n):
                staged[index] = images[min(index, count - 1)]
        self._doing = "queueing a call"
        if mark:
            for name, stage in one.stages():
                stage()
                mark(name)
        else:
            one.run()
        self._doing = "waiting for detections"
        stream.synchronize()
        wanted, offsets, capacity = found["wanted"], found["offsets"], room.edges.shape[1]
        totals = [int(offsets[row, wanted[row]]) for row in range(count)]
        if max(totals) > capacity:
            log.warning("masks with %d edges: there is room for %d; made on the host", max(totals), capacity)
            return None
        if any(totals):
            self._doing = "downloading edges"
            if mark:
                mark(_BREAK)
            first, stride = room.addresses["edges"], room.edges.strides[0]
            for row, total in enumerate(totals):
                if total:
                    stream.download(room.edges[row, :total], first + row * stride)
            if mark:
                mark("download")
            stream.synchronize()
        regions = read_regions(wanted[:count], header["sizes"], found["regions"], offsets, room.edges)
        nothing = np.empty((n, 0, 0, self._chain.depth), np.float32)
        scores = found["scores"]
        detections = Detections(
            wanted, found["boxes"], scores, found["classes"], found["kept_coefficients"], nothing,
            found.get("mask_scores", scores),
        )  # fmt: skip
        return detections, regions

    def _room_for(self, sizes: Sequence[tuple[int, int]]) -> Room | None:
        """Room for images of these sizes; None where there cannot be."""
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        room = self._room
        if room is not None and height <= room.height and width <= room.width:
            return room
        if height * width >= self._shared.most_pixels:
            return None
        sides = [max(_FIRST_SIDE, -(-side // _STEP) * _STEP) for side in (height, width)]
        if room is not None:
            sides = [max(sides[0], room.height), max(sides[1], room.width)]
        self._drop_room()
        try:
            self._room = Room(self._shared, *sides).__enter__()
        except (DeviceError, UsageError) as error:
            self._shared.most_pixels = min(self._shared.most_pixels, height * width)
            log.warning("images of %dx%d pixels: %s; their masks are made on the host", height, width, error)
        return self._room

    def _trace(self, n: int, room: Room) -> TracedBatch:
        staged = None if self._chain.resizes else self._stage().images
        size = (room.height, room.width)
        made = TracedBatch(self._shared, self._memory, n, room.addresses, size, staged).__enter__()
        self._traced[n] = made
        return made

    def _stage(self) -> Staging:
        if self._staging is None:
            device, tensors, n = self._shared.device, self._chain.tensors, self._chain.metadata.max_batch
            with ExitStack() as held:
                images, prototypes = (
                    device.pinned(held, name, (n, *tensors[name].shape), tensors[name].dtype)
                    for name in (INPUT, "prototypes")
                )
                self._staging = Staging(images, prototypes)
                self._memories.push(held.pop_all())
        return self._staging

    def _settle(self) -> None:
        """Wait until nothing on the GPU uses the slot's memory, after an error."""
        try:
            self._stream.synchronize()
        except self._shared.device.errors as error:
            log.debug("%s", error)

    def _drop_room(self) -> None:
        while self._traced:
            self._traced.popitem()[1].__exit__(None, None, None)
        room, self._room = self._room, None
        if room is not None:
            room.__exit__(None, None, None)

    def _drop(self) -> None:
        """What came after opening, the last first."""
        self._settle()
        self._drop_room()
        while self._batches:
            self._batches.popitem()[1].__exit__(None, None, None)
        self._staging = None
        self._memories.close()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """After any error leave nothing running, and turn pycuda's into a DeviceError."""
        try:
            yield
        except BaseException as error:
            self._settle()
            if isinstance(error, self._shared.device.errors):
                raise pycuda_failure(error, f"{self._doing} (slot {self._number})") from error
            raise
