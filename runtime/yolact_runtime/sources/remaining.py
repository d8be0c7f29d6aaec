"""A source without what an earlier run has done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from yolact_runtime.frames import Frame, Source


class RemainingSource(Source):
    """The frames of `source` that are not done; they keep their index, so that ids stay as they were.

    Args:
        source: All frames.
        done: How often each name is done. A name may be in the source more often.

    Attributes:
        skipped: How many have been left out so far.
    """

    def __init__(self, source: Source, done: Mapping[str, int]) -> None:
        self.live = source.live
        self.skipped = 0
        self._source = source
        self._done = dict(done)
        if source.total is not None:
            self.total = max(0, source.total - sum(done.values()))

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._source:
            left = self._done.get(frame.name, 0)
            if left:
                self._done[frame.name] = left - 1
                self.skipped += 1
            else:
                yield frame

    def close(self) -> None:
        self._source.close()
