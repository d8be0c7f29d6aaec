"""Several sources as one: one after the other, or all at the same time."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.frames import Frame, Source, failed_frame

log = logging.getLogger(__name__)

# Frames of a source that are kept until the pipeline takes them: the newest one of a live source.
_LIVE, _WAITING = 1, 2
# Seconds that reading threads have to end; one that hangs in a driver is abandoned.
_PATIENCE = 1.0


class ChainSource(Source):
    """Sources one after the other, with their frames numbered consecutively.

    A source that fails ends with a frame that cannot be read, so that the failure is counted; the next
    source follows.
    """

    name = "files"

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self._closed = threading.Event()
        self.total = _total(sources)
        # Images between cameras are not live and must not be dropped.
        self.live = all(source.live for source in sources)

    def __iter__(self) -> Iterator[Frame]:
        """The frames of all sources; a failure becomes a frame whose `read` raises it."""
        index = 0
        for number, source in enumerate(self.sources):
            if self._closed.is_set():
                return
            try:
                for frame in source:
                    yield replace(frame, index=index, source=number)
                    index += 1
            except YolactError as error:
                yield failed_frame(index, name_of(source), error, number)
                index += 1
            source.close()

    def close(self) -> None:
        self._closed.set()
        for source in self.sources:
            source.close()


@dataclass(eq=False)
class Feed:
    """One of the sources of a `SimultaneousSource`.

    Attributes:
        source: Where its frames are from.
        name: For messages.
        numbers: The values of `Frame.source` of its frames; several if it is a chain.
        dropped: Frames that were dropped because they came too fast.
    """

    source: Source
    name: str
    numbers: range
    dropped: int = 0
    ended: bool = field(default=False, init=False, repr=False)
    waiting: deque[Frame] = field(default_factory=deque, init=False, repr=False)

    @property
    def reconnects(self) -> int:
        """How often a camera was lost and came back."""
        return getattr(self.source, "reconnects", 0)


class SimultaneousSource(Source):
    """Sources that are read at the same time, each by its own thread, and handed out in turn.

    A live source never waits: only its newest frame is kept for the pipeline, and those that were replaced
    are counted. Other sources wait, and lose nothing. A source without frames delays no other one. One that
    fails ends with a frame that cannot be read, as in a `ChainSource`; the others go on.

    Attributes:
        feeds: The sources, with their names and counts.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.feeds: list[Feed] = []
        first = 0
        for source in sources:
            count = len(source.sources) if isinstance(source, ChainSource) else 1
            self.feeds.append(Feed(source, name_of(source), range(first, first + count)))
            first += count
        self.total = _total(sources)
        self.live = any(source.live for source in sources)
        self._drop_late: bool | None = None
        self._closed = False
        self._changed = threading.Condition()

    def drops_late(self, drop_late: bool | None) -> bool:
        self._drop_late = drop_late
        return True

    def __iter__(self) -> Iterator[Frame]:
        """The frames of all sources; no source gets two turns while another one waits."""
        threads = [
            threading.Thread(target=self._read, args=(feed,), daemon=True, name=f"source {feed.name}")
            for feed in self.feeds
        ]
        for thread in threads:
            thread.start()
        turn = 0
        try:
            for index in itertools.count():
                taken = self._take(turn)
                if taken is None:
                    return
                turn, frame = taken
                yield replace(frame, index=index)
        finally:
            self.close()
            until = time.monotonic() + _PATIENCE
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """End the iteration, and all sources; frames that wait are lost."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for source in self.sources:
            source.close()

    def _take(self, turn: int) -> tuple[int, Frame] | None:
        """The feed after the next frame's, and the frame, starting with feed `turn`; None at the end."""
        count = len(self.feeds)
        with self._changed:
            while not self._closed:
                for number in range(turn, turn + count):
                    feed = self.feeds[number % count]
                    if feed.waiting:
                        frame = feed.waiting.popleft()
                        self._changed.notify_all()
                        return (number + 1) % count, frame
                if all(feed.ended for feed in self.feeds):
                    return None
                self._changed.wait()
        return None

    def _read(self, feed: Feed) -> None:
        """Read one source in its own thread."""
        index = 0
        failure: YolactError | None = None
        try:
            for frame in feed.source:
                index = frame.index + 1
                if not self._put(feed, frame):
                    return
        except YolactError as error:
            failure = error
        except Exception as error:  # of any library: the other sources go on
            log.debug("source %s", feed.name, exc_info=True)
            failure = YolactError(f"{feed.name} failed: {type(error).__name__}: {first_line(error)}")
        finally:
            feed.source.close()
            with self._changed:
                if failure is not None:
                    feed.waiting.append(self._own(feed, failed_frame(index, feed.name, failure)))
                feed.ended = True
                self._changed.notify_all()

    def _put(self, feed: Feed, frame: Frame) -> bool:
        """Keep a frame for the pipeline, waiting or dropping the oldest one; False if all is closed."""
        live = feed.source.live
        drops = live if self._drop_late is None else self._drop_late
        most = _LIVE if live else _WAITING
        with self._changed:
            while len(feed.waiting) >= most and not self._closed:
                if drops:
                    feed.waiting.popleft()
                    feed.dropped += 1
                    self.dropped += 1
                else:
                    self._changed.wait()
            if self._closed:
                return False
            feed.waiting.append(self._own(feed, frame))
            self._changed.notify_all()
        return True

    def _own(self, feed: Feed, frame: Frame) -> Frame:
        """A frame of one source as one of several."""
        return replace(frame, source=feed.numbers[frame.source], source_index=frame.index)


def name_of(source: Source) -> str:
    """What messages call a source."""
    return str(getattr(source, "path", None) or getattr(source, "name", "source"))


def leaves(source: Source) -> list[Source]:
    """The sources that one consists of, in their order; only itself if it is a single one."""
    inner = getattr(source, "sources", None)
    return [source] if inner is None else [leaf for one in inner for leaf in leaves(one)]


def _total(sources: Sequence[Source]) -> int | None:
    """The number of frames of all sources; None if one is not known."""
    totals = [source.total for source in sources]
    return None if None in totals else sum(total for total in totals if total is not None)
