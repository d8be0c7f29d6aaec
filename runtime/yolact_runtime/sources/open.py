"""From the words a user names to one source."""

from __future__ import annotations

import glob
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.frames import Frame, Source
from yolact_runtime.sources.camera import CameraSource, is_camera, without_secrets
from yolact_runtime.sources.images import SUFFIXES, ImageSource, list_names
from yolact_runtime.sources.listing import ListSource
from yolact_runtime.sources.video import SUFFIXES as VIDEO_SUFFIXES
from yolact_runtime.sources.video import VideoSource, is_video


class ChainSource(Source):
    """Sources one after the other, their frames numbered through.

    One that breaks off gives a last frame that cannot be read, so that it is counted, and the next begins.

    Args:
        sources: One or more.

    Attributes:
        parts: The sources.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.parts = sources
        self._closed = threading.Event()
        totals = [source.total for source in sources]
        self.total = None if None in totals else sum(total for total in totals if total is not None)
        # Images between cameras have no clock, and must not be dropped.
        self.live = all(source.live for source in sources)

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        for source in self.parts:
            if self._closed.is_set():
                return
            try:
                for frame in source:
                    yield replace(frame, index=index)
                    index += 1
            except YolactError as error:
                name = str(getattr(source, "path", None) or getattr(source, "name", "source"))
                yield Frame(index, name, Path(name), partial(_raise, error))
                index += 1
            source.close()

    def close(self) -> None:
        self._closed.set()
        for source in self.parts:
            source.close()

    @property
    def folders(self) -> set[str] | None:
        """As `image_folders` has it."""
        parts = [image_folders(source) for source in self.parts]
        return None if None in parts else set().union(*(part for part in parts if part is not None))


class RemainingSource(Source):
    """The frames of `source` that are not done yet; they keep their indices, and so their ids.

    Args:
        source: All frames.
        done: How many frames of each name are done. A name may occur in the source more often.

    Attributes:
        skipped: Number of frames left out so far.
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


class BrokenSource(Source):
    """One that could not be opened.

    Args:
        name: What it was to be.
        error: Raised when it is iterated.
    """

    total = 1

    def __init__(self, name: str, error: YolactError) -> None:
        self.name, self._error = name, error

    def __iter__(self) -> Iterator[Frame]:
        raise self._error


def _raise(error: YolactError) -> np.ndarray:
    raise error


def open_source(words: Sequence[str], stream: BinaryIO | None = None, null: bool = False) -> Source:
    """What the words name, in their order.

    Args:
        words: Images, folders (of images), patterns, videos, cameras (`0`, `camera:0`, `/dev/video0`),
            addresses (`rtsp://...`, `http://...`), and `-` for a list of images on standard input.
        stream: Instead of standard input.
        null: The paths on standard input end in NUL instead of a line end.

    Raises:
        UsageError: a word that names nothing; `-` twice.
        YolactError: a video cannot be opened, and nothing else is named; otherwise it counts as one frame
            that cannot be read.
    """
    if list(words).count("-") > 1:
        raise UsageError("- (standard input) is named twice; it can be read once")
    words = [name for word in words for name in _matches(word)]
    sources: list[Source] = []
    images: list[str] = []

    def flush() -> None:
        if images:
            sources.append(ImageSource(list_names(images)))
            images.clear()

    for word in words:
        try:
            other = _other_source(word, stream, null)
        except UsageError:
            raise
        except YolactError as error:
            if len(words) == 1:
                raise
            other = BrokenSource(without_secrets(word), error)
        if other is None:
            images.append(word)
        else:
            flush()
            sources.append(other)
    flush()
    if not sources:
        raise UsageError("no source is named; give images, folders, patterns, videos, a camera or -")
    return sources[0] if len(sources) == 1 else ChainSource(sources)


def image_folders(source: Source) -> set[str] | None:
    """The real paths of the folders that a source reads images from; None where only time will tell."""
    if isinstance(source, ListSource):
        return None
    return getattr(source, "folders", set())


def has_video(source: Source) -> bool:
    """Whether any of the frames have a time."""
    if isinstance(source, ChainSource):
        return any(has_video(part) for part in source.parts)
    return not isinstance(source, ImageSource | ListSource)


def _matches(word: str) -> list[str]:
    """The files that a pattern matches where videos are among them; else the word itself."""
    if not glob.has_magic(word) or os.path.lexists(word) or "://" in word:
        return [word]
    names = sorted(glob.glob(word, recursive=True))  # noqa: PTH207 - as for images
    suffixes = {name: Path(name).suffix.lower() for name in names}
    if not any(suffix in VIDEO_SUFFIXES for suffix in suffixes.values()):
        return [word]
    return [name for name, suffix in suffixes.items() if suffix in (*VIDEO_SUFFIXES, *SUFFIXES)]


def _other_source(word: str, stream: BinaryIO | None, null: bool) -> Source | None:
    """The source of a word that does not name images."""
    if word == "-":
        if stream is None and sys.stdin is None:
            raise UsageError("- needs standard input, which is closed")
        return ListSource(stream or sys.stdin.buffer, null)
    if Path(word).is_file():
        return VideoSource(Path(word)) if is_video(word) else None
    return CameraSource(word) if not Path(word).is_dir() and is_camera(word) else None
