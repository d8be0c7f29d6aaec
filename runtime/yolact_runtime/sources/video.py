"""Video files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_runtime.errors import YolactError
from yolact_runtime.frames import Frame, Source
from yolact_runtime.sources.decoder import Clock, Decoder, Orientation, Picture, orientation
from yolact_runtime.sources.folders import IMAGES, VIDEOS
from yolact_runtime.sources.libav import (
    MAX_PIXELS,
    all_moving_pictures,
    load_av,
    moving_pictures,
    open_video,
    reason,
)
from yolact_runtime.sources.timeline import Timeline

if TYPE_CHECKING:
    from av.index import IndexEntry
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

_NO_VIDEO = (".csv", ".json", ".md", ".txt", ".xml", ".yaml", ".yml")


def is_video(path: str | Path) -> bool:
    """Whether `path` is a video, by its suffix; if that is unknown, by its content (which needs PyAV)."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in VIDEOS:
        return True
    if suffix in IMAGES or suffix in _NO_VIDEO or not path.is_file():
        return False
    try:
        with open_video(path) as container:
            # FFmpeg also reads single images and ANSI art as video.
            kind = container.format.name
            still = kind.endswith("_pipe") or kind in {"image2", "gif", "tty"}
            return not still and moving_pictures(container) is not None
    except YolactError:
        return False


class VideoSource(Source):
    """The frames of one video file, with their presentation times.

    After damage, the frames up to the next key frame are lost; a warning says how many, and `lost` is
    their total.
    """

    def __init__(self, path: str | Path) -> None:
        """Check the file; the iteration opens it again.

        Raises:
            YolactError: the file cannot be opened, or contains no video that can be decoded.
        """
        self.path = Path(path)
        self.lost = 0
        self._closed = False
        with open_video(self.path) as container:
            stream = moving_pictures(container)
            if stream is None:
                content = "sound only" if container.streams.audio else "no video"
                raise YolactError(f"video {self.path} contains {content}; there are no frames")
            # PyAV has no context for a codec without a decoder, contrary to its type stubs.
            context: VideoCodecContext | None = stream.codec_context
            if context is None:
                raise YolactError(f"video {self.path}: this PyAV has no decoder for its codec")
            # FFmpeg sets sizes beyond its own limit to 0.
            if not 0 < context.width * context.height <= MAX_PIXELS:
                raise YolactError(
                    f"video {self.path} has no frame size, or one of more than {MAX_PIXELS:,} pixels"
                )
            self.total = len(_shown(stream)) if "mp4" in container.format.name else stream.frames
            self.total = self.total or None

    def __iter__(self) -> Iterator[Frame]:
        """The frames; `Frame.read` converts them to BGR.

        Raises:
            YolactError: no frame could be decoded, or the file ends before its last one.
        """
        av = load_av()
        count = 0
        with open_video(self.path) as container:
            stream = moving_pictures(container)
            if stream is None:
                raise YolactError(f"video {self.path} changed while it was read")
            if (streams := len(all_moving_pictures(container))) > 1:
                log.warning("video %s has %d video streams; the first is read", self.path, streams)
            decoder = Decoder(stream, str(self.path))
            timeline = Timeline(container, stream, str(self.path))
            clock = Clock(timeline.start, timeline.period)
            packets = (packet for packet in timeline.packets() if packet.stream.index == stream.index)
            turned: Orientation | None = None
            try:
                for frame in decoder.frames(packets):
                    if self._closed:
                        return
                    if turned is None:
                        turned = orientation(frame, stream.metadata, str(self.path))
                    name = f"{self.path}#{count}"
                    picture = Picture(frame, name, turned)
                    time = clock.time(decoder.seconds(frame))
                    yield Frame(count, name, self.path, picture.read, time, decoder.duration(frame))
                    count += 1
            except av.FFmpegError as error:
                raise YolactError(
                    f"video {self.path} cannot be read past frame {count}: {reason(error)}"
                ) from error
            finally:
                self.lost = decoder.lost
                decoder.finish()
            if not count:
                raise YolactError(f"video {self.path} contains no frame that can be decoded")
            # Other containers index key frames only, or build the index while they are read.
            if "mp4" in container.format.name:
                self._check_end(stream)

    def _check_end(self, stream: VideoStream) -> None:
        """Raise a YolactError if the index places frames that are shown beyond the end of the file."""
        size = self.path.stat().st_size
        ends = [entry.pos + entry.size for entry in _shown(stream)]
        if missing := sum(end > size for end in ends):
            raise YolactError(
                f"video {self.path} is cut off: it has {len(ends) - missing} of its {len(ends)} frames"
            )

    def close(self) -> None:
        """End a running iteration before its next frame."""
        self._closed = True


def _shown(stream: VideoStream) -> list[IndexEntry]:
    """The entries of the index whose frames no edit list hides."""
    return [entry for entry in stream.index_entries if not entry.is_discard]
