"""Engines on the GPU run from pinned and device buffers, several calls at a time."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from yolact_runtime.cuda.device import Device
from yolact_runtime.detections import Detections, check_detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.device.model import Model
from yolact_runtime.engines.device.network import Network
from yolact_runtime.engines.device.slot import Slot
from yolact_runtime.engines.outputs import INPUT
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.results import Result, result_of

log = logging.getLogger(__name__)

MOST_STREAMS = 8
# One slot computes while the other copies.
AUTO_STREAMS = 2


class DeviceEngine(Engine):
    """An engine on the GPU, whichever library runs its network.

    Resizing, detection after raw heads and masks are kernels on the network's stream; they return
    the detections that a result can show and the edges of their masks. Calls from up to `streams` threads run
    at the same time; further calls wait.

    Args:
        path: The file, checked.
        metadata: Its metadata.
        network: The network, which the engine opens and closes.
        streams: Number of calls at the same time, 1..8; "auto" for 2.
        graphs: Whether to launch by CUDA graphs.

    Raises:
        YolactError: the engine does not match its metadata, or pycuda or the kernels' compiler is missing.
        DeviceError: the GPU or the network's library failed.
        UsageError: `streams` is outside its range.
    """

    path: Path
    reuses_outputs = False

    def __init__(
        self,
        path: Path,
        metadata: Metadata,
        network: Network,
        streams: int | str = "auto",
        graphs: bool = True,
    ) -> None:
        slots = AUTO_STREAMS if streams == "auto" else streams
        if not isinstance(slots, int) or not 1 <= slots <= MOST_STREAMS:
            raise UsageError(f"streams is {streams!r}; it must be in 1..{MOST_STREAMS}, or 'auto'")
        self.metadata, self.streams = metadata, slots
        self.path, self._network = path, network
        self.unknown_because = network.unknown_because
        self._idle: SimpleQueue[Slot | None] = SimpleQueue()
        self._closed = False
        with ExitStack() as held:
            self._device: Device = held.enter_context(Device())
            with self._device.current, ExitStack() as inner:
                model: Model = inner.enter_context(Model(self._device, path, metadata, network, graphs))
                for number in range(slots):
                    self._idle.put(inner.enter_context(Slot(model, number)))
                held.callback(self._device.close_within, inner.pop_all())
            # Also frees an engine that nobody closes, while there is a context to free it in.
            self._free = weakref.finalize(self, held.pop_all().close)
        plan = model.plan
        if reason := plan.host_reason:
            log.info("%s: masks are computed on the host: %s", path, reason)
        self._gpu_masks = not reason
        self._resizes = self._gpu_masks and plan.resizes
        self._input = plan.tensors[INPUT]

    @property
    def name(self) -> str:
        return self._network.title

    @property
    def precision(self) -> str:
        return self._network.precision

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The image itself if the GPU resizes it."""
        return image if self._resizes else super().prepare(image)

    def predict_prepared(
        self,
        prepared: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
        classes: frozenset[int] | None = None,
    ) -> list[Result]:
        """Results of prepared images, with masks from the GPU if it has enough memory."""
        meta = self.metadata
        if not 1 <= len(prepared) <= meta.max_batch:
            raise YolactError(
                f"{self.path}: it takes 1 to {meta.max_batch} images at once, not {len(prepared)}"
            )
        if self._gpu_masks:
            with self._slot() as slot:
                found = slot.predict(prepared, sizes, score_threshold, top_k, classes)
                if found is not None:
                    detections, regions = found
                    check_detections(detections, len(detections.boxes), meta)
                    return [
                        result_of(
                            detections,
                            index,
                            size,
                            meta,
                            score_threshold,
                            top_k,
                            regions[index],
                            classes=classes,
                        )
                        for index, size in enumerate(sizes)
                    ]
        if self._resizes:
            prepared = [super(DeviceEngine, self).prepare(image) for image in prepared]
        return super().predict_prepared(prepared, sizes, score_threshold, top_k, classes)

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        meta = self.metadata
        fits = batch.ndim == 4 and batch.shape[1:] == self._input.shape and batch.dtype == self._input.dtype
        if not fits or not meta.min_batch <= len(batch) <= meta.max_batch:
            raise YolactError(
                f"{self.path}: a batch is {batch.shape} {batch.dtype}; {meta.min_batch} to {meta.max_batch}"
                f" images {self._input.shape} {self._input.dtype} are needed"
            )
        with self._slot() as slot:
            return slot.detect(batch, classes)

    def stage_times(
        self,
        images: Sequence[np.ndarray],
        score_threshold: float = 0.15,
        top_k: int = 15,
        classes: frozenset[int] | None = None,
    ) -> dict[str, float]:
        """GPU time of each stage of one call, launched stage by stage and timed by events.

        Time in which the GPU waits for the host counts in the stage that waits.

        Args:
            images: At most a batch of images, as for `predict`.
            score_threshold: As for `predict`.
            top_k: As for `predict`.
            classes: As for `predict_prepared`.

        Returns:
            Milliseconds of `upload`, `preprocess`, `network`, `detect`, `masks` and `download`.

        Raises:
            YolactError: masks of such images are computed on the host.
            DeviceError: the GPU failed.
        """
        times = None
        if self._gpu_masks:
            prepared = [self.prepare(image) for image in images]
            sizes = [(image.shape[0], image.shape[1]) for image in images]
            with self._slot() as slot:
                times = slot.stage_times(prepared, sizes, score_threshold, top_k, classes)
        if times is None:
            raise YolactError(f"{self.path}: its stages cannot be timed: masks are computed on the host")
        return times

    def close(self) -> None:
        """Wait for running calls, then free everything."""
        if self._closed:
            return
        self._closed = True
        for _ in range(self.streams):
            self._idle.get()
        self._idle.put(None)  # for calls that wait
        self._free()

    @contextmanager
    def _slot(self) -> Iterator[Slot]:
        """An idle slot, with the context current."""
        slot = self._idle.get()
        try:
            if slot is None:
                raise YolactError(f"{self.path}: the engine is closed")
            with self._device.current:
                yield slot
        finally:
            self._idle.put(slot)
