"""Interfaces of the pipeline: `Frame`, `Source` and `Sink`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.errors import YolactError
from yolact_runtime.results import Result


@dataclass(frozen=True)
class Frame:
    """One image, decoded only when `read` is called.

    Attributes:
        index: Position in the source, from 0, without gaps.
        name: For messages and outputs: a path, or `clip.mp4#12` for the thirteenth frame of a video.
        path: The file, or the address of the stream.
        read: Returns the image, (H, W, 3) uint8 BGR, or raises a YolactError that names it. May be called
            once, from any thread.
        time: Seconds since the start of the video or stream; None for images.
        duration: Seconds that the frame is shown, where the video says so.
        source: Which of several sources the frame is from, from 0.
        source_index: Position in that source, if several are read at the same time; else None.
        interrupted: Seconds for which its camera was lost before the frame, in all; `time` leaves them out.
    """

    index: int
    name: str
    path: Path
    read: Callable[[], np.ndarray]
    time: float | None = None
    duration: float | None = None
    source: int = 0
    source_index: int | None = None
    interrupted: float = 0.0


def failed_frame(index: int, name: str, error: YolactError, source: int = 0) -> Frame:
    """A frame that cannot be read: its `read` raises `error`, so that the failure is counted."""

    def read() -> np.ndarray:
        raise error

    return Frame(index, name, Path(name), read, source=source)


class Source(ABC):
    """Frames in order. Iterated once, by one thread; another one may close it.

    Attributes:
        total: Number of frames; None if unknown.
        live: Frames come in real time, and may be dropped if processing is too slow.
        dropped: Number of late frames that the source dropped itself.
    """

    total: int | None = None
    live: bool = False
    dropped: int = 0

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Raises:
            YolactError: the source failed; the frames before remain valid.
        """

    def drops_late(self, drop_late: bool | None) -> bool:
        """Whether the source drops late frames itself, as `PipelineSettings.drop_late` says.

        If not, the pipeline does. Called before the iteration.
        """
        return False

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Free resources; a running iteration ends soon. May be called twice."""


class Sink(ABC):
    """Receives results. `prepare` runs in any thread and order, `write` in the order of the frames."""

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> Any:
        """The expensive part of writing, such as RLE or drawing; the return value is passed to `write`."""
        return result

    @abstractmethod
    def write(self, frame: Frame, prepared: Any) -> None:
        """Write one result, or keep it for `close`.

        Raises:
            ItemError: only this one cannot be written: the frame fails.
            YolactError: it cannot be written; the pipeline stops.
        """

    def fail(self, frame: Frame, error: str) -> None:  # noqa: B027 - most sinks leave failed frames out
        """Called instead of `write` for a frame without a result; `error` is one line that names it.

        Raises:
            YolactError: as for `write`.
        """

    def close(self) -> None:  # noqa: B027 - some sinks keep nothing
        """Write what was kept, also after an error or Ctrl-C. May be called twice."""

    def written(self) -> list[str]:
        """The files and folders that were written, for messages; valid after `close`."""
        return []


class ResumableSink(Sink):
    """A sink whose output of an earlier run can be continued."""

    @abstractmethod
    def carry(self, line: dict[str, Any]) -> None:
        """Take over an image that an earlier run has done; called in their order, before `write`.

        Args:
            line: What `JsonLinesSink` wrote about it.
        """
