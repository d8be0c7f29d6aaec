"""What passes through the pipeline: frames from a source, results into sinks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.results import Result


@dataclass(frozen=True)
class Frame:
    """One image on its way, decoded only when `read` is called.

    Attributes:
        index: Its place in the source, from 0, without gaps.
        name: For messages and outputs: a path, or `clip.mp4#12` for the thirteenth frame of a video.
        path: The file it is in, or the address of the stream.
        read: Gives the image, (H, W, 3) uint8 BGR, or raises a YolactError that names it. May be called
            from any thread, once.
        time: Seconds since the start of the video or stream; None for images.
    """

    index: int
    name: str
    path: Path
    read: Callable[[], np.ndarray]
    time: float | None = None


class Source(ABC):
    """Frames in order. Iterated once, by one thread, which may not be the one that closes it.

    Attributes:
        total: How many frames there will be; None where that is not known.
        live: Frames come by the clock and wait for nobody: late ones may be dropped.
    """

    total: int | None = None
    live: bool = False

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Raises:
            YolactError: the source itself ended in an error; frames given before stay good.
        """

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Free what the source holds; a pending iteration ends soon. May be called twice."""


class Sink(ABC):
    """Takes results. `prepare` may run in any thread and order; `write` comes in the order of the frames."""

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> Any:
        """The costly part of writing, such as run lengths or drawing; its value is given to `write`."""
        return result

    @abstractmethod
    def write(self, frame: Frame, prepared: Any) -> None:
        """Write one result, or keep it for `close`.

        Raises:
            YolactError: it cannot be written. The pipeline stops: what cannot be written is lost.
        """

    def fail(self, frame: Frame, error: str) -> None:  # noqa: B027 - most sinks leave failed frames out
        """Take note, in the order of the frames, that one has no result.

        Args:
            frame: The frame.
            error: One line that names it.

        Raises:
            YolactError: as for `write`.
        """

    def close(self) -> None:  # noqa: B027 - some sinks hold nothing back
        """Write what is held back, also after an error or Ctrl-C. May be called twice."""
