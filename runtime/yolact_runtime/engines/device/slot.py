"""One call at a time on the GPU: an engine has as many slots as calls may run at the same time.

On the stream of a slot, a call is: upload, resize, network, detection, masks, download. Other slots do the
same on their streams, so one call's copies overlap with another's network.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from yolact_runtime.cuda.device import Event, pycuda_failure
from yolact_runtime.cuda.plans.masks import read_regions
from yolact_runtime.cuda.plans.preprocess import pack
from yolact_runtime.cuda.plans.visible import class_words
from yolact_runtime.cuda.resource import Resource
from yolact_runtime.detections import Detections
from yolact_runtime.engines.device.batch import Batch
from yolact_runtime.engines.device.buffers import ImageBuffers, SlotBuffers
from yolact_runtime.engines.device.model import Model
from yolact_runtime.engines.outputs import INPUT
from yolact_runtime.errors import DeviceError, UsageError, counted
from yolact_runtime.masks import Region

log = logging.getLogger(__name__)

# Image buffers start at this side, which COCO's images fit into, and grow in whole steps.
_FIRST_SIDE = 640
_STEP = 64
# A mark where a stage begins and none ends.
_BEGIN = ""


class Slot(Resource):
    """Runs one call at a time; opened, used and closed with the context current.

    Args:
        model: The engine.
        number: For error messages.
    """

    def __init__(self, model: Model, number: int) -> None:
        super().__init__()
        self._model, self._plan, self._number = model, model.plan, number
        self._buffers = SlotBuffers(model)
        self._batches: dict[int, Batch] = {}
        self._images: ImageBuffers | None = None
        self._doing = ""

    def _open(self) -> None:
        self._held.enter_context(self._buffers)
        self._stream = self._buffers.stream
        self._held.callback(self._close_images)
        self._held.callback(self._close_batches)

    def _close_batches(self) -> None:
        self._model.device.settle(self._stream)
        while self._batches:
            self._batches.popitem()[1].__exit__(None, None, None)

    def _close_images(self) -> None:
        images, self._images = self._images, None
        if images is not None:
            images.__exit__(None, None, None)

    def _batch(self, n: int) -> Batch:
        """The batch of n images, opened at its first use."""
        if n not in self._batches:
            self._batches[n] = Batch(self._model, self._buffers, n).__enter__()
        return self._batches[n]

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        """Detections and prototypes of images that the host resized, as new arrays.

        Args:
            batch: (n, H, W, 3), dtype of the engine's input.
            classes: 0-based indices of the wanted classes; None for all.

        Raises:
            DeviceError: the GPU failed.
        """
        n, stream, addresses = len(batch), self._stream, self._buffers.addresses
        with self._failing():
            images, prototypes = (array[:n] for array in self._buffers.staging())
            prepared = self._batch(n)
            images[...] = batch
            self._choose(prepared, classes)
            self._doing = f"uploading {counted(n, 'image')}"
            prepared.header.upload(stream)
            stream.upload(addresses[INPUT], images)
            self._doing = "running the network"
            prepared.queue_network()
            prepared.queue_detection()
            self._doing = "downloading detections"
            prepared.summary.download(stream)
            stream.download(prototypes, addresses["prototypes"])
            self._doing = "waiting for detections"
            stream.synchronize()
        # The next call overwrites the memory.
        found = {name: array.copy() for name, array in prepared.summary.arrays.items()}
        found["prototypes"] = prototypes.copy()
        outputs = self._model.outputs
        if self._plan.metadata.detect == "native":
            return outputs.detections([found[self._plan.buffer_name(name)] for name in outputs.names])
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
        classes: frozenset[int] | None = None,
        mark: Callable[[str], None] | None = None,
    ) -> tuple[Detections, list[list[Region]]] | None:
        """Detections that a result can show, and their masks.

        Args:
            images: (h, w, 3) uint8 of any size; (H, W, 3) float32, the input's, if the host resizes.
            sizes: Height and width of each.
            score_threshold: Detections must score higher to be shown.
            top_k: Show at most this many detections.
            classes: 0-based indices of the classes to show; None for all.
            mark: Called before the first stage of a series with "", and after each stage with its name; then
                the stages are launched without a graph.

        Returns:
            Detections whose arrays the next call overwrites and whose `count` is the number of rows to look
            at, and new regions. None if the GPU has not enough memory for such images or masks.

        Raises:
            DeviceError: the GPU failed.
        """
        with self._failing():
            buffers = self._image_buffers_for(sizes)
            if buffers is None:
                return None
            batch = self._batch(max(len(images), self._plan.metadata.min_batch))
            if not batch.connected:
                batch.connect(buffers)
            self._queue_call(batch, buffers, images, sizes, score_threshold, top_k, classes, mark)
            self._doing = "waiting for detections"
            self._stream.synchronize()
            if not self._download_edges(batch, buffers, len(images), mark):
                return None
            return self._read(batch, buffers, len(images))

    def stage_times(
        self,
        images: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
        classes: frozenset[int] | None = None,
    ) -> dict[str, float] | None:
        """Run a call stage by stage, without a graph, and time each on the GPU.

        Returns:
            Milliseconds; None in the cases of `predict`.

        Raises:
            DeviceError: the GPU failed.
        """
        marks: list[tuple[str, Event]] = []
        with self._failing(), ExitStack() as held:

            def mark(name: str) -> None:
                marks.append((name, self._model.device.open_event(held)))
                marks[-1][1].record(self._stream)

            if self.predict(images, sizes, score_threshold, top_k, classes, mark) is None:
                return None
            self._stream.synchronize()
            times: dict[str, float] = {}
            for (_, earlier), (name, later) in itertools.pairwise(marks):
                if name != _BEGIN:
                    times[name] = times.get(name, 0.0) + later.milliseconds_since(earlier)
        return times

    def _queue_call(
        self,
        batch: Batch,
        buffers: ImageBuffers,
        images: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
        classes: frozenset[int] | None,
        mark: Callable[[str], None] | None,
    ) -> None:
        """Fill the pinned memory and put the call on the stream, all but the download of edges."""
        count, header = len(images), batch.header.arrays
        header["sizes"][...] = 1
        header["sizes"][:count] = sizes
        header["limits"][0] = score_threshold
        header["limits"][1] = min(top_k, self._plan.metadata.max_detections)
        self._choose(batch, classes)
        if mark:
            mark(_BEGIN)
        if self._plan.resizes:
            pack(images, buffers.pixels, header["table"])
            used = sum(image.size for image in images)
            self._doing = "uploading pixels"
            self._stream.upload(buffers.addresses["pixels"], buffers.pixels[:used])
        else:
            staged = self._buffers.staging()[0]
            for index in range(batch.n):  # the last image fills the batch up
                staged[index] = images[min(index, count - 1)]
        self._doing = "queueing a call"
        if mark is None:
            batch.run()
            return
        for name, stage in batch.stages():
            stage()
            mark(name)

    def _choose(self, batch: Batch, classes: frozenset[int] | None) -> None:
        """Write into the header which classes the call wants."""
        batch.header.arrays["wanted"][...] = class_words(classes, len(self._plan.metadata.class_names))

    def _download_edges(
        self, batch: Batch, buffers: ImageBuffers, count: int, mark: Callable[[str], None] | None
    ) -> bool:
        """Download the edges of visible masks; False if there are more than the buffer holds."""
        visible, offsets = batch.summary.arrays["visible"], batch.summary.arrays["offsets"]
        totals = [int(offsets[row, visible[row]]) for row in range(count)]
        capacity = buffers.edges.shape[1]
        if max(totals) > capacity:
            text = "masks with %d edges do not fit the buffer, which holds %d; computed on the host"
            log.warning(text, max(totals), capacity)
            return False
        if not any(totals):
            return True
        self._doing = "downloading edges"
        if mark:
            mark(_BEGIN)
        first, stride = buffers.addresses["edges"], buffers.edges.strides[0]
        for row, total in enumerate(totals):
            if total:
                self._stream.download(buffers.edges[row, :total], first + row * stride)
        if mark:
            mark("download")
        self._stream.synchronize()
        return True

    def _read(self, batch: Batch, buffers: ImageBuffers, count: int) -> tuple[Detections, list[list[Region]]]:
        """What `predict` returns, from what was downloaded."""
        found = batch.summary.arrays
        visible, scores = found["visible"], found["scores"]
        regions = read_regions(
            visible[:count], batch.header.arrays["sizes"], found["regions"], found["offsets"], buffers.edges
        )
        no_prototypes = np.empty((batch.n, 0, 0, self._plan.depth), np.float32)
        detections = Detections(
            visible, found["boxes"], scores, found["classes"], found["kept_coefficients"], no_prototypes,
            found.get("mask_scores", scores),
        )  # fmt: skip
        return detections, regions

    def _image_buffers_for(self, sizes: Sequence[tuple[int, int]]) -> ImageBuffers | None:
        """Image buffers for images of these sizes; None if the GPU has not enough memory for them."""
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        buffers = self._images
        if buffers is not None and height <= buffers.height and width <= buffers.width:
            return buffers
        if height * width >= self._model.most_pixels:
            return None
        sides = [max(_FIRST_SIDE, -(-side // _STEP) * _STEP) for side in (height, width)]
        if buffers is not None:
            sides = [max(sides[0], buffers.height), max(sides[1], buffers.width)]
        for batch in self._batches.values():
            batch.disconnect()
        self._close_images()
        try:
            self._images = ImageBuffers(self._model, *sides).__enter__()
        except (DeviceError, UsageError) as error:
            self._model.most_pixels = min(self._model.most_pixels, height * width)
            log.warning(
                "images of %dx%d pixels: %s; their masks are computed on the host", height, width, error
            )
        return self._images

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """After any error leave nothing running, and turn pycuda's exceptions into a DeviceError."""
        try:
            yield
        except BaseException as error:
            self._model.device.settle(self._stream)
            if isinstance(error, self._model.device.errors):
                raise pycuda_failure(error, f"{self._doing} (slot {self._number})") from error
            raise
