"""From the packets of one video stream to pictures, past what is damaged."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.sources.libav import MAX_PIXELS, load_av, reason, to_bgr

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

# Each damaged place gets its line up to here; then only the sum is told.
_PLACES_TOLD = 5
# Steps back, in periods, that rounded or repeated time stamps make; more is a clock that began anew.
_JITTER = 2.5
_LEAST_STEP = 1e-3
# Steps forward, in seconds, that mean a clock that was set: of a camera, and of a file, where a picture may
# stand still for long, but not longer than an MP4 can say.
_LEAP_LIVE, _LEAP = 10.0, 12 * 3600.0
# Codecs with packets that hold no frame to be shown.
_HIDDEN = {"vp8", "vp9", "av1", "libvpx", "libvpx-vp9", "libdav1d", "libaom-av1"}
_DECODING = -math.inf  # a key frame that precedes everything


class Clock:
    """Time stamps as seconds since the start, which always grow.

    Frames without a time stamp follow the one before by `period`; so does the first one after the clock of
    the stream began anew.
    """

    def __init__(self, start: float | None, period: float, live: bool = False) -> None:
        self.last: float | None = None
        self.period = period
        self._start = start
        self._leap = _LEAP_LIVE if live else _LEAP

    def restart(self, period: float) -> None:
        """The stream begins anew, with time stamps of its own."""
        self.period = period
        self._start = None

    def time(self, seconds: float | None) -> float:
        """Stream time of a frame whose time stamp is `seconds`."""
        following = 0.0 if self.last is None else self.last + self.period
        if seconds is None:
            self.last = following
            return following
        if self._start is None:
            self._start = seconds - following
        time = max(seconds - self._start, 0.0)
        if self.last is not None and time <= self.last:
            if seconds - self._start < self.last - _JITTER * self.period:
                self._start = seconds - following
                time = following
            else:
                time = self.last + _LEAST_STEP
        elif time > following + self._leap:
            self._start = seconds - following
            time = following
        self.last = time
        return time


class Decoder:
    """Decodes one stream, in one thread.

    Attributes:
        packets: How many packets with data came.
        lost: Frames that damage has cost so far.
    """

    def __init__(self, stream: VideoStream, name: str, live: bool = False) -> None:
        """Set up the stream's codec.

        Args:
            stream: Of an open container.
            name: Of the video, for messages.
            live: Show each frame at once and as well as it came; otherwise frames that need a damaged one
                are left out, and decoding uses every core.
        """
        self.packets = 0
        self.lost = 0
        self._stream = stream
        self._tick = stream.time_base or Fraction(1, 1000)
        self._name = name
        self._live = live
        self._places = 0
        self._pending: dict[int, None] = {}  # time stamps of frames inside the decoder, in its order
        self._since: str | None = None  # where the damage began that no key frame has ended yet
        self._key: float | None = None  # time stamp of that key frame, until what follows it is whole
        self._lost_here = 0
        # Not `err_detect=explode`: with threads, H.264 would then fail from the first open group on.
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.thread_type = "SLICE" if live else "AUTO"

    def frames(self, packets: Iterable[Packet]) -> Iterator[VideoFrame]:
        """The frames in the order in which they are shown.

        Raises:
            YolactError: there is no decoder for the stream.
        """
        av = load_av()
        for packet in packets:
            if packet.size:
                self.packets += 1
                if self._since is not None and not self._is_whole(packet):
                    self._lost_here += 1
                    continue
                if packet.pts is not None and not packet.is_discard:
                    self._pending[packet.pts] = None
            try:
                for frame in packet.decode():
                    yield self._came(frame)
            except EOFError:
                continue
            except av.error.DecoderNotFoundError as error:
                raise YolactError(f"video {self._name}: no decoder for it in this PyAV") from error
            except (av.FFmpegError, ValueError, MemoryError) as error:
                yield from self._damage(packet, error)
        self._vanished(list(self._pending))
        self._tell()

    def seconds(self, frame: VideoFrame) -> float | None:
        """The time stamp of a frame of this stream."""
        # A frame that was still inside the decoder does not know its time base.
        return None if frame.pts is None else float(frame.pts * self._tick)

    def finish(self) -> None:
        """Tell what was lost in all, where not every place was told."""
        if self._places > _PLACES_TOLD:
            log.warning(
                "video %s is damaged in %d places: %d frames lost", self._name, self._places, self.lost
            )

    def _came(self, frame: VideoFrame) -> VideoFrame:
        if frame.pts in self._pending:
            # Frames come in the order of their times: what should have come before is not coming any more.
            gone = [pts for pts in self._pending if pts < frame.pts]
            for pts in [*gone, frame.pts]:
                del self._pending[pts]
            self._vanished(gone)
        return frame

    def _vanished(self, gone: list[int]) -> None:
        """Count frames that the decoder has dropped without a word."""
        if gone and not self._live and self._stream.codec_context.name not in _HIDDEN:
            self._begin(min(gone), "the decoder dropped it")
            self._lost_here += len(gone)
            self._key = self._key or _DECODING
            self._tell()

    def _damage(self, packet: Packet, error: Exception) -> Iterator[VideoFrame]:
        """Give the good frames that are still inside the decoder, and wait for a key frame."""
        missing = list(self._pending)
        if not self._live:
            # With threads the error comes late: what followed the damage may be inside as well, made from it.
            inside = self._drain()
            came = {frame.pts for frame in inside}
            while missing and missing[0] in came:
                missing.pop(0)
            for frame in inside:
                if frame.pts not in missing:
                    yield frame
        self._stream.codec_context.flush_buffers()
        self._pending.clear()
        self._key = None
        self._begin(min(missing, default=packet.pts), reason(error))
        self._lost_here += max(1, len(missing))

    def _begin(self, stamp: int | None, cause: str) -> None:
        if self._since is None:
            at = "" if stamp is None else f" at {float(stamp * self._tick):.2f} s"
            self._since = f"{at} ({cause})"
            self._lost_here = 0

    def _drain(self) -> list[VideoFrame]:
        frames: list[VideoFrame] = []
        for _ in range(100):  # each call ends at the next damaged frame
            try:
                return frames + self._stream.codec_context.decode(None)
            except EOFError:
                break
            except (load_av().FFmpegError, ValueError, MemoryError):
                continue
        return frames

    def _is_whole(self, packet: Packet) -> bool:
        """Whether a packet after damage needs nothing lost: a key frame, and what is shown after it."""
        if not self._live:
            if packet.is_keyframe and self._key is None:
                self._key = _DECODING if packet.pts is None else packet.pts
                return True
            if self._key is None:
                return False
            if (packet.pts or 0) < self._key:
                return False  # shown before the key frame, and made from frames on both sides of it
        self._tell()
        return True

    def _tell(self) -> None:
        if self._since is None:
            return
        self._places += 1
        self.lost += self._lost_here
        if self._places <= _PLACES_TOLD:
            rest = "to its end" if self._key is None and not self._live else "then decoding goes on"
            frames = "1 frame" if self._lost_here == 1 else f"{self._lost_here} frames"
            log.warning("video %s is damaged%s: %s lost, %s", self._name, self._since, frames, rest)
        self._since = self._key = None


class Picture:
    """A decoded frame, until `read` turns it into pixels and lets go of it."""

    def __init__(self, frame: VideoFrame, name: str, orientation: Orientation) -> None:
        self._frame: VideoFrame | None = frame
        self._name = name
        self._orientation = orientation

    def read(self) -> np.ndarray:
        """(H, W, 3) uint8 BGR, the right way up. Once only.

        Raises:
            YolactError: pixels in a format that cannot be converted, or no memory for them.
        """
        frame, self._frame = self._frame, None
        if frame is None:
            raise YolactError(f"frame {self._name} was read before")
        try:
            return self._orientation.apply(to_bgr(frame))
        except (ValueError, MemoryError, load_av().FFmpegError) as error:
            raise YolactError(f"frame {self._name} cannot be converted: {first_line(error)}") from error


class Orientation:
    """How pictures are turned and mirrored before they are shown.

    Attributes:
        swap: Rows and columns change places, first of all.
        mirror: Left and right change places.
        flip: Top and bottom change places.
    """

    def __init__(self, swap: bool = False, mirror: bool = False, flip: bool = False) -> None:
        self.swap, self.mirror, self.flip = swap, mirror, flip

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) as it is shown, contiguous."""
        if self.swap:
            image = image.transpose(1, 0, 2)
        if self.mirror:
            image = image[:, ::-1]
        if self.flip:
            image = image[::-1]
        return np.ascontiguousarray(image)


def orientation(frame: VideoFrame, tags: dict[str, str], name: str) -> Orientation:
    """How a frame is meant to be shown: by its display matrix, else by an old `rotate` tag of the stream.

    What is no multiple of a quarter turn is ignored, with a warning.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        # Nine fixed-point numbers a b u c d v x y w; a point (p, q) goes to (a p + c q + x, b p + d q + y).
        a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
        straight, across = max(abs(a), abs(d)), max(abs(b), abs(c))
        if min(abs(a), abs(d)) > 50 * across:
            return Orientation(mirror=a < 0, flip=d < 0)
        if min(abs(b), abs(c)) > 50 * straight:
            return Orientation(swap=True, mirror=c < 0, flip=b < 0)
        log.warning("video %s: its rotation is no multiple of 90 degrees; it is ignored", name)
        return Orientation()
    tag = next((value for key, value in tags.items() if key.lower() == "rotate"), "0")
    try:
        turns, rest = divmod(float(tag), 90)
    except ValueError:
        turns, rest = 0, 1
    if rest or abs(turns) > 1e6:
        log.warning(
            "video %s: its rotation is %r, not a multiple of 90 degrees; it is ignored", name, tag[:20]
        )
        return Orientation()
    return (
        Orientation(),
        Orientation(swap=True, mirror=True),
        Orientation(mirror=True, flip=True),
        Orientation(swap=True, flip=True),
    )[int(turns) % 4]
