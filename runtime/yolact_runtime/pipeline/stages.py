"""The threads of a pipeline and the queues between them.

    reader > intake > decode workers > prepared > engine threads > found > post workers > ordered > writer

With tracks, one thread between `found` and the post workers takes all frames in order, also the failed ones.

A frame holds one of a fixed number of slots from the start of its decoding until it is written. The slots
bound the memory and slow the reader down to the slowest stage. So the queues after the intake need no bounds,
and no full queue can block the frame that the writer waits for.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolact_runtime.engines.base import Engine, check_image
from yolact_runtime.errors import EngineUnavailableError, ItemError, YolactError, counted, first_line
from yolact_runtime.frames import Frame, Sink, Source
from yolact_runtime.pipeline.queues import Channel, Closed
from yolact_runtime.pipeline.settings import PipelineSettings, RunStats
from yolact_runtime.results import Result
from yolact_runtime.tracks import SourceTrackers

log = logging.getLogger(__name__)

# Seconds that an aborted thread has to end.
_PATIENCE = 1.0
# Engines that take fewer images than some run wanted: runs of many requests share an engine.
_WARNED: weakref.WeakSet[Engine] = weakref.WeakSet()


@dataclass(eq=False)
class _Item:
    """A frame in flight and the output of its last stage; each stage releases its input."""

    ticket: int
    frame: Frame
    image: np.ndarray | None = None
    prepared: np.ndarray | None = None
    result: Result | None = None
    outputs: list[Any] | None = None
    detections: int = 0
    fault: str | None = None
    tracked: bool = False


class Run:
    """The threads of one run, their queues, and how it ends."""

    def __init__(
        self,
        source: Source,
        engine: Engine,
        sinks: Sequence[Sink],
        settings: PipelineSettings,
        stats: RunStats,
    ) -> None:
        """Create the queues and threads; `start` starts them."""
        self.stats = stats
        self.finished = threading.Event()
        self.error: BaseException | None = None
        self._source, self._engine, self._sinks, self._settings = source, engine, sinks, settings
        self._classes = engine.class_indices(settings.classes)
        self._batch = _batch_size(settings.batch_size, engine)
        streams = max(1, engine.streams)
        late = source.live if settings.drop_late is None else settings.drop_late
        # One batch in each stream and one waiting; with more, frames of a live source would be outdated.
        window, waiting = (streams + 1) * self._batch, self._batch
        if not late:
            window += streams * self._batch + settings.decode_workers + 2 * settings.post_workers
            waiting = settings.decode_workers
        self._late_in_source = source.drops_late(settings.drop_late)
        self._drop_late = late and not self._late_in_source
        self._intake: Channel[Frame] = Channel(waiting)
        self._slots: Channel[None] = Channel(items=[None] * (settings.in_flight or window))
        self._prepared: Channel[_Item] = Channel()
        self._found: Channel[_Item] = Channel()
        self._trackers = SourceTrackers(settings.track) if settings.track else None
        self._tracked: Channel[_Item] = Channel() if self._trackers else self._found
        self._ordered: Channel[_Item] = Channel()
        self._lock = threading.Lock()
        self._engine_faults = 0
        self._lost: EngineUnavailableError | None = None
        self._begun = threading.Event()
        self._aborted = False
        self._writing: Sink | None = None
        self._start = time.perf_counter()
        self._reader = threading.Thread(target=self._guard, args=(self._read,), daemon=True, name="reader")
        self._threads = [
            *self._stage("decode", settings.decode_workers, self._decode, self._prepared.close),
            *self._stage("engine", streams, self._infer, self._found.close),
            *(self._stage("track", 1, self._track, self._tracked.close) if self._trackers else ()),
            *self._stage("post", settings.post_workers, self._post, self._ordered.close),
            *self._stage("writer", 1, self._write, self.finished.set),
        ]

    def start(self) -> None:
        """Start the threads, which wait for `begin`."""
        for thread in (self._reader, *self._threads):
            thread.start()

    def begin(self) -> None:
        """Start reading. Separate from `start`, so that Ctrl-C finds either all threads running or none."""
        if not self._begun.is_set():
            self._start = time.perf_counter()
            self._begun.set()

    def stop_reading(self) -> None:
        """Finish the frames in flight and read no more."""
        self._intake.close(discard=True)
        self._source.close()

    def abort(self, error: BaseException | None) -> None:
        """Wake every thread so that it ends; frames in flight are lost."""
        with self._lock:
            self._aborted = True
            self.error = self.error or error
        queues = self._intake, self._slots, self._prepared, self._found, self._tracked, self._ordered
        for queue in queues:
            queue.close(discard=True)

    def join(self) -> None:
        """Wait for all threads; after an abort only briefly, as a call that hangs cannot be interrupted."""
        until = time.monotonic() + _PATIENCE
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()) if self._aborted else None)
        self._source.close()
        self._begun.set()
        if self._reader.ident is not None:
            self._reader.join(_PATIENCE)

    def close(self) -> None:
        """Close every sink, even if closing another one fails."""
        for sink in self._sinks:
            if sink is self._writing:
                continue  # hangs in a write that the abort did not wait for
            try:
                sink.close()
            except Exception as error:
                if self.error is None:
                    self.error = _as_yolact_error(error)
                elif str(error) != str(self.error):
                    log.error("%s", error)

    def _stage(
        self, name: str, count: int, work: Callable[[], None], after: Callable[[], None]
    ) -> list[threading.Thread]:
        """`count` threads that run `work`; the last one to end calls `after`."""
        left = count

        def body() -> None:
            nonlocal left
            try:
                self._guard(work)
            finally:
                with self._lock:
                    left -= 1
                    last = left == 0
                if last:
                    after()

        # Daemons: a thread that hangs must not keep the program from ending.
        return [threading.Thread(target=body, daemon=True, name=f"{name}-{i}") for i in range(count)]

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Closed:
            pass
        except BaseException as error:  # an error in the pipeline itself, or a sink that cannot write
            self.abort(error)

    def _read(self) -> None:
        """Move frames from the source to the intake."""
        put = self._intake.put_newest if self._drop_late else self._intake.put
        own = 0
        try:
            self._begun.wait()
            for frame in self._source:
                late = put(frame) or 0
                before, own = own, self._source.dropped
                self.stats.read += 1 + own - before
                self.stats.dropped += late + own - before
                if self._late_in_source:
                    self._intake.wait_until_empty()  # until then, newer frames may come
        except Closed:
            pass
        except Exception as error:
            self._end(_as_yolact_error(error))
        finally:
            self._intake.close()

    def _end(self, error: YolactError) -> None:
        """Same as the end of the source, and keeps the error."""
        with self._lock:
            self.error = self.error or error

    def _decode(self) -> None:
        """Read and resize frames; each takes a slot."""
        while True:
            self._slots.get()
            try:
                ticket, frame = self._intake.take()
            except Closed:
                self._slots.put(None)
                raise
            item = _Item(ticket, frame)
            try:
                item.image = frame.read()
                check_image(frame.index, item.image)
                item.prepared = self._engine.prepare(item.image)
            except Exception as error:
                self._lose(item, error)
            else:
                self._prepared.put(item)

    def _infer(self) -> None:
        """Run the engine on batches; if one fails, on its images one by one."""
        while True:
            batch = self._prepared.take_batch(self._batch, self._settings.deadline)
            error = self._lost or self._predict(batch)
            if error is not None and len(batch) > 1 and not isinstance(error, EngineUnavailableError):
                log.debug("the engine failed on a batch; trying its images one by one: %s", error)
                for item in batch:
                    if error := self._lost or self._predict([item]):
                        self._lose_to_engine(item, error)
            elif error is not None:
                for item in batch:
                    self._lose_to_engine(item, error)

    def _predict(self, batch: list[_Item]) -> Exception | None:
        """Pass the results of `batch` on; return the error if there is one."""
        settings = self._settings
        try:
            if self._engine_faults >= settings.engine_failures:
                raise YolactError("the engine failed too often")
            results = self._engine.predict_prepared(
                [item.prepared for item in batch if item.prepared is not None],
                [(item.image.shape[0], item.image.shape[1]) for item in batch if item.image is not None],
                settings.score_threshold,
                settings.top_k,
                self._classes,
            )
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:
            return error
        with self._lock:
            if self._engine_faults < settings.engine_failures:
                self._engine_faults = 0
        for item, result in pairs:
            item.prepared, item.result = None, result
            self._found.put(item)
        return None

    def _lose_to_engine(self, item: _Item, error: Exception) -> None:
        """Report a frame that the engine failed on; the run ends if it is lost, or fails too often."""
        if isinstance(error, EngineUnavailableError):
            # Ends the run; the frames in flight fail without a line each.
            self._lost = error
            self._end(error)
            self.stop_reading()
            self._lose(item, error, quietly=True)
            return
        limit = self._settings.engine_failures
        with self._lock:
            self._engine_faults += 1
            faults = self._engine_faults
        self._lose(item, error, quietly=faults > limit)
        if faults == limit:
            count = counted(limit, "image")
            self._end(YolactError(f"the engine failed on {count} in a row; the rest is skipped"))
            self.stop_reading()

    def _track(self) -> None:
        """Give the instances their tracks, in the order of the frames."""
        assert self._trackers is not None
        for item in _in_order(self._found):
            item.tracked = True
            if item.result is None:
                self._trackers.skip(item.frame)
                self._ordered.put(item)
                continue
            try:
                item.result = self._trackers.update(item.frame, item.result)
            except Exception as error:
                self._lose(item, error)
            else:
                self._tracked.put(item)

    def _post(self) -> None:
        """Prepare the outputs of every sink."""
        while True:
            item = self._tracked.get()
            image, result = item.image, item.result
            assert image is not None and result is not None
            try:
                item.outputs = [sink.prepare(item.frame, image, result) for sink in self._sinks]
            except Exception as error:
                self._lose(item, error)
                continue
            item.detections = len(result)
            item.image = item.result = None
            del image, result
            self._ordered.put(item)

    def _lose(self, item: _Item, error: Exception, quietly: bool = False) -> None:
        """Report a failed frame; it goes to the stages that need every ticket."""
        self._report(item, error, quietly)
        (self._found if self._trackers and not item.tracked else self._ordered).put(item)

    def _report(self, item: _Item, error: Exception, quietly: bool = False) -> None:
        """Mark a frame as failed, and log why."""
        text = str(_as_yolact_error(error))
        item.fault = text if item.frame.name in text else f"{item.frame.name}: {text}"
        item.image = item.prepared = item.result = None
        if not quietly and self._settings.log_failures:
            log.error("%s; skipped", item.fault)
            log.debug("where it failed", exc_info=error)

    def _write(self) -> None:
        """Give frames to the sinks in the order of their tickets."""
        reported = ""
        for item in _in_order(self._ordered):
            for index, sink in enumerate(self._sinks):
                if self._aborted:
                    raise Closed
                self._writing = sink
                try:
                    if item.fault is not None:
                        sink.fail(item.frame, item.fault)
                    elif item.outputs is not None:
                        sink.write(item.frame, item.outputs[index])
                except ItemError as error:
                    # Once for all frames of a video that cannot be written.
                    self._report(item, error, quietly=str(error) == reported)
                    reported = str(error)
                except Exception as error:
                    raise _as_yolact_error(error) from error
                finally:
                    self._writing = None
            self.stats.count(item.frame.source, None if item.fault is not None else item.detections)
            self.stats.seconds = time.perf_counter() - self._start
            self._slots.put(None)


def _batch_size(wanted: int, engine: Engine) -> int:
    """Images per call of the engine; warns once for an engine that takes fewer than are wanted."""
    most = engine.metadata.max_batch
    if wanted > most and engine not in _WARNED:
        _WARNED.add(engine)
        log.warning(
            "%s takes at most %s in a call, and the batch size is %d: batches have %d; for larger ones export"
            " with --max-batch %d, or open a checkpoint with load_engine(..., max_batch=%d)",
            engine.name, counted(most, "image"), wanted, most, wanted, wanted,
        )  # fmt: skip
    return min(wanted, most)


def _in_order(queue: Channel[_Item]) -> Iterator[_Item]:
    """The items of a queue in the order of their tickets, which are all put into it."""
    waiting: dict[int, _Item] = {}
    for ticket in itertools.count():
        while ticket not in waiting:
            item = queue.get()
            waiting[item.ticket] = item
        yield waiting.pop(ticket)


def _as_yolact_error(error: Exception) -> YolactError:
    """Another library's error as one line; `__cause__` keeps its traceback for --debug."""
    if isinstance(error, YolactError):
        return error
    wrapped = YolactError(f"{type(error).__name__}: {first_line(error)}")
    wrapped.__cause__ = error
    return wrapped
