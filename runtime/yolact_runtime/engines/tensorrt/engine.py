"""TensorRT engines run from pinned and device buffers, several calls at a time."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from yolact_runtime.cuda.device import Kernels
from yolact_runtime.cuda.graphs import Graphs
from yolact_runtime.cuda.memory import PycudaDevice
from yolact_runtime.detections import Detections, check_detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.outputs import INPUT
from yolact_runtime.engines.tensorrt.batches import Shared
from yolact_runtime.engines.tensorrt.model import Model
from yolact_runtime.engines.tensorrt.record import EngineRecord
from yolact_runtime.engines.tensorrt.slots import Slot
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.results import Result, result_of

log = logging.getLogger(__name__)

MOST_STREAMS = 8
# One computes while the other copies.
AUTO_STREAMS = 2


class TensorRtEngine(Engine):
    """An engine on the GPU.

    Resizing, detection after a `runtime` engine and masks are kernels on the same stream; what comes back
    are the detections and the edges of the masks that a result can show. Calls from up to `streams` threads
    run at the same time, more wait.

    Args:
        path: The file, checked.
        metadata: Its metadata.
        record: What else its JSON says.
        library: `tensorrt` or `tensorrt_rtx`.
        streams: Calls at the same time, 1..8; "auto" for 2.
        graphs: Launch by CUDA graphs.

    Raises:
        YolactError: the engine is not what its metadata say, or pycuda or the kernels' compiler is missing.
        DeviceError: the GPU or TensorRT failed.
        UsageError: `streams` is outside its range.
    """

    reuses_outputs = False

    def __init__(
        self,
        path: Path,
        metadata: Metadata,
        record: EngineRecord,
        library: Any,
        streams: int | str = "auto",
        graphs: bool = True,
    ) -> None:
        slots = AUTO_STREAMS if streams == "auto" else streams
        if not isinstance(slots, int) or not 1 <= slots <= MOST_STREAMS:
            raise UsageError(f"streams is {streams!r}; it must be in 1..{MOST_STREAMS}, or 'auto'")
        self.metadata, self.streams = metadata, slots
        self._path, self._title = path, record.title
        self._idle: SimpleQueue[Slot | None] = SimpleQueue()
        self._closed = False
        with ExitStack() as held:
            self._device: PycudaDevice = held.enter_context(PycudaDevice())
            with self._device.current, ExitStack() as inner:
                self._open_slots(inner, record, library, graphs)
                held.callback(self._device.close_within, inner.pop_all())
            # Also for an engine that nobody closes: afterwards there is no context left to free anything in.
            self._free = weakref.finalize(self, held.pop_all().close)

    def _open_slots(self, held: ExitStack, record: EngineRecord, library: Any, graphs: bool) -> None:
        device = self._device
        model: Model = held.enter_context(Model(self._path, self.metadata, record, library))
        chain = model.chain
        if reason := chain.host_reason:
            log.info("%s: masks are made on the host: %s", self._path, reason)
        self._traces = not reason
        self._resizes = self._traces and chain.resizes
        plans = [] if (detection := chain.detection(1)) is None else [detection]
        if self._traces:
            plans += [chain.wanted(1), chain.masks(1, 1, 1)]
            plans += [chain.resize(1, 1)] if self._resizes else []
        kernels: Kernels = held.enter_context(Kernels(device, plans))
        priors = None
        if detection is not None:
            table = np.ascontiguousarray(model.outputs.priors, np.float32)
            priors = device.allocate(held, "priors", table.nbytes)
            device.upload(priors, table, "priors")
        shared = Shared(device, model, kernels, Graphs(device, graphs), priors)
        for number in range(self.streams):
            self._idle.put(held.enter_context(Slot(shared, number)))
        self._input = chain.tensors[INPUT]

    @property
    def name(self) -> str:
        return self._title

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The image itself where the GPU resizes it."""
        return image if self._resizes else super().prepare(image)

    def predict_prepared(
        self,
        prepared: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
    ) -> list[Result]:
        meta = self.metadata
        if not 1 <= len(prepared) <= meta.max_batch:
            raise YolactError(
                f"{self._path}: it takes 1 to {meta.max_batch} images at once, not {len(prepared)}"
            )
        if self._traces:
            with self._slot() as slot:
                found = slot.predict(prepared, sizes, score_threshold, top_k)
                if found is not None:
                    detections, regions = found
                    check_detections(detections, len(detections.boxes), meta)
                    return [
                        result_of(
                            detections, index, size, meta, score_threshold, top_k, contours=regions[index]
                        )
                        for index, size in enumerate(sizes)
                    ]
        if self._resizes:
            prepared = [super(TensorRtEngine, self).prepare(image) for image in prepared]
        return super().predict_prepared(prepared, sizes, score_threshold, top_k)

    def detect(self, batch: np.ndarray) -> Detections:
        meta = self.metadata
        fits = batch.ndim == 4 and batch.shape[1:] == self._input.shape and batch.dtype == self._input.dtype
        if not fits or not meta.min_batch <= len(batch) <= meta.max_batch:
            raise YolactError(
                f"{self._path}: a batch is {batch.shape} {batch.dtype}; {meta.min_batch} to {meta.max_batch}"
                f" images {self._input.shape} {self._input.dtype} are needed"
            )
        with self._slot() as slot:
            return slot.detect(batch)

    def stage_times(
        self, images: Sequence[np.ndarray], score_threshold: float = 0.15, top_k: int = 15
    ) -> dict[str, float]:
        """Where the GPU's time goes in one call, launched stage by stage and timed by events.

        Where the host is behind the GPU, that is part of the stage which waits for it.

        Args:
            images: As many as a batch takes, as for `predict`.
            score_threshold: As for `predict`.
            top_k: As for `predict`.

        Returns:
            Milliseconds of `upload`, `preprocess`, `network`, `detect`, `masks` and `download`.

        Raises:
            YolactError: the masks of such images are made on the host.
            DeviceError: the GPU failed.
        """
        times = None
        if self._traces:
            prepared = [self.prepare(image) for image in images]
            sizes = [(image.shape[0], image.shape[1]) for image in images]
            with self._slot() as slot:
                times = slot.stage_times(prepared, sizes, score_threshold, top_k)
        if times is None:
            raise YolactError(f"{self._path}: its stages cannot be timed: masks are made on the host")
        return times

    def close(self) -> None:
        """Wait for the calls that run, and free everything."""
        if self._closed:
            return
        self._closed = True
        for _ in range(self.streams):
            self._idle.get()
        self._idle.put(None)  # for whoever waits
        self._free()

    @contextmanager
    def _slot(self) -> Iterator[Slot]:
        slot = self._idle.get()
        try:
            if slot is None:
                raise YolactError(f"{self._path}: the engine is closed")
            with self._device.current:
                yield slot
        finally:
            self._idle.put(slot)
