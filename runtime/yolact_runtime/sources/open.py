"""`open_source`: one source for everything that the user names."""

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
    """Sources one after the other, with their frames numbered consecutively.

    A source that fails ends with a frame that cannot be read, so that the failure is counted; the next
    source follows.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self._closed = threading.Event()
        totals = [source.total for source in sources]
        self.total = None if None in totals else sum(total for total in totals if total is not None)
        # Images between cameras are not live and must not be dropped.
        self.live = all(source.live for source in sources)

    def __iter__(self) -> Iterator[Frame]:
        """The frames of all sources; a failure becomes a frame whose `read` raises it."""
        index = 0
        for source in self.sources:
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
        for source in self.sources:
            source.close()


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
    """A source named `path` that could not be opened; iterating it raises `error`."""

    total = 1

    def __init__(self, path: str, error: YolactError) -> None:
        self.path, self._error = path, error

    def __iter__(self) -> Iterator[Frame]:
        raise self._error


def _raise(error: YolactError) -> np.ndarray:
    raise error


def open_source(names: Sequence[str], stream: BinaryIO | None = None, null: bool = False) -> Source:
    """One source for all names, in their order.

    Args:
        names: Images, folders (of images), patterns, videos, cameras (`0`, `camera:0`, `/dev/video0`),
            addresses (`rtsp://...`, `http://...`), and `-` for a list of images on standard input.
        stream: Read instead of standard input.
        null: The paths on standard input end in NUL instead of a line end.

    Raises:
        UsageError: a name of nothing, or `-` twice.
        YolactError: a video cannot be opened and is the only source; among others it counts as one frame
            that cannot be read.
    """
    if list(names).count("-") > 1:
        raise UsageError("- (standard input) is named twice; it can be read once")
    names = [name for pattern in names for name in _matches(pattern)]
    sources: list[Source] = []
    images: list[str] = []

    def flush() -> None:
        if images:
            sources.append(ImageSource(list_names(images)))
            images.clear()

    for name in names:
        try:
            other = _other_source(name, stream, null)
        except UsageError:
            raise
        except YolactError as error:
            if len(names) == 1:
                raise
            other = BrokenSource(without_secrets(name), error)
        if other is None:
            images.append(name)
        else:
            flush()
            sources.append(other)
    flush()
    if not sources:
        raise UsageError("no source is named; name images, folders, patterns, videos, a camera or -")
    return sources[0] if len(sources) == 1 else ChainSource(sources)


def image_folders(source: Source) -> set[str] | None:
    """Real paths of the folders that a source reads images from; None if they are not known in advance."""
    if isinstance(source, ListSource):
        return None
    if isinstance(source, ChainSource):
        folders = [image_folders(one) for one in source.sources]
        return None if None in folders else set().union(*filter(None, folders))
    return source.folders if isinstance(source, ImageSource) else set()


def source_files(source: Source) -> Iterator[str | Path]:
    """The files that a source reads, as far as they are known in advance."""
    if isinstance(source, ChainSource):
        for one in source.sources:
            yield from source_files(one)
    elif isinstance(source, ImageSource):
        yield from source.paths
    elif isinstance(source, ListSource):
        yield from source.known_names()
    elif isinstance(source, VideoSource | BrokenSource):
        yield source.path


def file_folders(source: Source) -> set[str] | None:
    """Real paths of the folders of all files that a source reads; None if it has a list, which may go on."""
    if any(isinstance(one, ListSource) for one in getattr(source, "sources", [source])):
        return None
    return {os.path.realpath(head) for head in {os.path.split(path)[0] for path in source_files(source)}}


def has_video(source: Source) -> bool:
    """Whether a source may have frames of a video or stream."""
    if isinstance(source, ChainSource):
        return any(has_video(one) for one in source.sources)
    return not isinstance(source, ImageSource | ListSource)


def _matches(pattern: str) -> list[str]:
    """The files that a pattern matches if there are videos among them; else the pattern itself."""
    if not glob.has_magic(pattern) or os.path.lexists(pattern) or "://" in pattern:
        return [pattern]
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - as for images
    suffixes = {name: Path(name).suffix.lower() for name in names}
    if not any(suffix in VIDEO_SUFFIXES for suffix in suffixes.values()):
        return [pattern]
    return [name for name, suffix in suffixes.items() if suffix in (*VIDEO_SUFFIXES, *SUFFIXES)]


def _other_source(name: str, stream: BinaryIO | None, null: bool) -> Source | None:
    """The list, video or camera of a name; None for images."""
    if name == "-":
        if stream is None and sys.stdin is None:
            raise UsageError("- needs standard input, which is closed")
        return ListSource(stream or sys.stdin.buffer, null)
    if Path(name).is_file():
        return VideoSource(Path(name)) if is_video(name) else None
    return CameraSource(name) if not Path(name).is_dir() and is_camera(name) else None
