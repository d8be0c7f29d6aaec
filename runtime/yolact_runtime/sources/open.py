"""`open_source`: one source for everything that the user names."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from yolact_runtime.errors import UsageError, YolactError, without_secrets
from yolact_runtime.frames import Frame, Source
from yolact_runtime.sources.camera import CameraSettings, CameraSource, is_camera
from yolact_runtime.sources.folders import (
    IMAGES,
    OTHER_IMAGES,
    VIDEOS,
    images_in,
    is_pattern,
    match,
    suffix_of,
)
from yolact_runtime.sources.heif import is_heif
from yolact_runtime.sources.images import ImageSource, each_once, expand
from yolact_runtime.sources.listing import ListSource
from yolact_runtime.sources.several import ChainSource, SimultaneousSource, leaves
from yolact_runtime.sources.video import VideoSource, is_video


class RemainingSource(Source):
    """The frames of `source` that are not done yet; they keep their indices, and so their ids.

    Args:
        source: All frames.
        done: How many frames of each name are done. A name may occur in the source more often.
        indices: Which frames these are, if the source is known to be the same.

    Attributes:
        skipped: Number of frames left out so far.
    """

    def __init__(self, source: Source, done: Mapping[str, int], indices: Collection[int] = ()) -> None:
        self.live = source.live
        self.skipped = 0
        self._source = source
        self._done = dict(done)
        self._indices = indices
        if source.total is not None:
            self.total = max(0, source.total - sum(done.values()))

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._source:
            left = self._done.get(frame.name, 0)
            if frame.index in self._indices:
                self.skipped += 1
            elif left and not self._indices:
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
        self.path, self.error = path, error

    def __iter__(self) -> Iterator[Frame]:
        raise self.error


def open_source(
    names: Sequence[str],
    stream: BinaryIO | None = None,
    null: bool = False,
    camera: CameraSettings | None = None,
) -> Source:
    """One source for all names, in their order.

    Cameras and streams among several names are read at the same time, and all files in their order as one
    more source; see `SimultaneousSource`.

    Args:
        names: Images, folders (of images), patterns, videos, cameras (`0`, `camera:0`, `/dev/video0`),
            addresses (`rtsp://...`, `http://...`), and `-` for a list of images on standard input.
        stream: Read instead of standard input.
        null: The paths on standard input end in NUL instead of a line end.
        camera: How long to wait for cameras and streams.

    Raises:
        UsageError: a name of nothing, or `-` twice.
        YolactError: a video cannot be opened and is the only source; among others it counts as one frame
            that cannot be read.
    """
    if list(names).count("-") > 1:
        raise UsageError("- (standard input) is named twice; it can be read once")
    opened = _Opened(stream, null, camera)
    for name in names:
        opened.add(name)
    opened.end_images()
    sources = opened.sources
    if not sources:
        raise UsageError("no source is named; name images, folders, patterns, videos, a camera or -")
    if len(sources) > 1:
        return _together(sources)
    if isinstance(sources[0], BrokenSource):
        raise sources[0].error
    return sources[0]


def _together(sources: list[Source]) -> Source:
    """Several sources as one: live ones at the same time, beside the others, which stay in their order."""
    if not any(source.live for source in sources):
        return ChainSource(sources)
    live = [source for source in sources if source.live or _is_address(source)]
    others = [source for source in sources if source not in live]
    # A chain even if it is one, so that it is called the same.
    return SimultaneousSource([*live, ChainSource(others)] if others else live)


def _is_address(source: Source) -> bool:
    """Whether a source is a stream that could not be opened."""
    return isinstance(source, BrokenSource) and "://" in source.path


class _Opened:
    """The sources of the names so far; images that follow each other are one source."""

    def __init__(self, stream: BinaryIO | None, null: bool, camera: CameraSettings | None) -> None:
        self.sources: list[Source] = []
        self._stream, self._null, self._camera = stream, null, camera
        self._images: list[list[str]] = []
        self._unread: list[BrokenSource] = []

    def add(self, name: str) -> None:
        """Open what a name names. Where that fails it is a `BrokenSource`, so that the rest is read.

        Raises:
            UsageError: it names nothing.
        """
        if is_pattern(name):
            self._add_pattern(name)
            return
        try:
            other = _other_source(name, self._stream, self._null, self._camera)
            if other is None:
                self._images.append(expand(name, self._unreadable))
                return
        except UsageError:
            raise
        except YolactError as error:
            other = BrokenSource(without_secrets(name), error)
        self.end_images()
        self.sources.append(other)

    def end_images(self) -> None:
        """Make a source of the images since the last video or camera, and of the folders that failed."""
        if any(self._images):
            self.sources.append(ImageSource(each_once(self._images)))
        self.sources += self._unread
        self._images, self._unread = [], []

    def _add_pattern(self, pattern: str) -> None:
        """Add the images and videos that a pattern matches, in the order of their names."""
        failures = len(self._unread)
        names = match(pattern, self._unreadable)
        videos = [name for name in names if suffix_of(name) in VIDEOS]
        others = (name for name in names if suffix_of(name) not in VIDEOS)
        images = images_in(pattern, others, whole=not videos and failures == len(self._unread))
        if not videos:
            self._images.append(images)
        for name in sorted(videos + images) if videos else ():
            self.add(name)

    def _unreadable(self, folder: str, error: YolactError) -> None:
        self._unread.append(BrokenSource(folder, error))


def image_folders(source: Source) -> set[str] | None:
    """Real paths of the folders that a source reads images from; None if they are not known in advance."""
    if _has_list(source):
        return None
    return {folder for one in leaves(source) if isinstance(one, ImageSource) for folder in one.folders}


def source_files(source: Source) -> Iterator[str | Path]:
    """The files that a source reads, as far as they are known in advance."""
    for one in leaves(source):
        if isinstance(one, ImageSource):
            yield from one.paths
        elif isinstance(one, ListSource):
            yield from one.known_names()
        elif isinstance(one, VideoSource | BrokenSource):
            yield one.path


def file_folders(source: Source) -> set[str] | None:
    """Real paths of the folders of all files that a source reads; None if it has a list, which may go on."""
    if _has_list(source):
        return None
    return {os.path.realpath(head) for head in {os.path.split(path)[0] for path in source_files(source)}}


def first_image(source: Source) -> str | None:
    """The name of the first image of a source; None if it is not known yet."""
    first = leaves(source)[0]
    if isinstance(first, ImageSource):
        return str(first.paths[0]) if first.paths else None
    return first.first if isinstance(first, ListSource) else None


def has_video(source: Source) -> bool:
    """Whether a source may have frames of a video or stream."""
    return not all(isinstance(one, ImageSource | ListSource | BrokenSource) for one in leaves(source))


def _has_list(source: Source) -> bool:
    return any(isinstance(one, ListSource) for one in leaves(source))


def _other_source(
    name: str, stream: BinaryIO | None, null: bool, camera: CameraSettings | None
) -> Source | None:
    """The list, video or camera of a name; None for images."""
    if name == "-":
        if stream is None and sys.stdin is None:
            raise UsageError("- needs standard input, which is closed")
        return ListSource(stream or sys.stdin.buffer, null)
    # Unlike those of Path, these functions raise no error; `expand` reports it.
    if os.path.isfile(name):  # noqa: PTH113
        still = suffix_of(name) in (*IMAGES, *OTHER_IMAGES) or is_heif(name)
        return VideoSource(Path(name)) if not still and is_video(name) else None
    if os.path.isdir(name) or not is_camera(name):  # noqa: PTH112
        return None
    return CameraSource(name, camera)
