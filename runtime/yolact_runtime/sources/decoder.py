"""Decoding of one video stream, which continues after damage."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from yolact_runtime.errors import YolactError, counted, first_line
from yolact_runtime.sources.libav import MAX_PIXELS, load_av, reason, to_bgr

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

# Number of damaged places that are reported one by one; beyond it only their total is.
_REPORTED_PLACES = 5
# Steps back, in frame periods, that rounded or repeated time stamps cause; more is a clock that was reset.
_JITTER = 2.5
_LEAST_STEP = 1e-3
# Larger steps forward, in seconds, mean that the clock was set: of a camera, and of a file, in which one
# picture may be shown for long, but not longer than an MP4 can represent.
_LEAP_LIVE, _LEAP = 10.0, 12 * 3600.0
# Number of frames by which a codec may reorder them: 16 in H.264 and HEVC.
_REORDERED = 20
_LATE = 2  # frames out of order, beyond which the time stamps are not those of showing them
# Seconds within which the second field of an interlaced frame follows the first, in a packet of its own.
_FIELD = 0.025
# Codecs with packets that contain no frame to be shown.
_HIDDEN = {"vp8", "vp9", "av1", "libvpx", "libvpx-vp9", "libdav1d", "libaom-av1"}
_DECODING = -math.inf  # a key frame that precedes everything


class Clock:
    """Converts time stamps to strictly increasing seconds since the start.

    A frame without a time stamp follows the previous one by `period`, and so does the first one after the
    clock of the stream was reset.
    """

    def __init__(self, start: float | None, period: float, live: bool = False) -> None:
        self.last: float | None = None
        self.period = period
        self._start = start
        self._leap = _LEAP_LIVE if live else _LEAP

    def restart(self, period: float) -> None:
        """Continue with another connection, which has time stamps of its own."""
        self.period = period
        self._start = None

    def time(self, seconds: float | None) -> float:
        """Stream time in seconds of a frame whose time stamp is `seconds`; None if it has none."""
        last = -math.inf if self.last is None else self.last
        following = 0.0 if self.last is None else last + self.period
        if seconds is None:
            time = following
        else:
            if self._start is None:
                self._start = seconds - following
            time = seconds - self._start
            if not last - _JITTER * self.period <= time <= following + self._leap:  # the clock was reset
                self._start, time = seconds - following, following
            time = max(time, 0.0) if time > last else last + _LEAST_STEP
        self.last = time
        return time


class Decoder:
    """Decodes one stream, in one thread.

    Attributes:
        lost: Number of frames lost by damage so far.
    """

    def __init__(self, stream: VideoStream, name: str, live: bool = False) -> None:
        """Set up the stream's codec.

        Args:
            stream: Of an open container.
            name: Of the video, for messages.
            live: Return each frame at once, even if damaged; otherwise frames that depend on a damaged one
                are dropped, and decoding uses every core.
        """
        self.lost = 0
        self._stream = stream
        self._tick = stream.time_base or Fraction(1, 1000)
        self._name = name
        self._live = live
        self._places = 0
        self._pending: dict[int, None] = {}  # time stamps of frames inside the decoder, in its order
        self._absent: list[int] = []  # time stamps that were passed over; their frames may still come
        self._late = 0  # number of frames that came after others with later time stamps
        self._ordered = True  # the time stamps are those of showing the frames
        self._after = 0  # number of frames since the last one was passed over
        self._fields_from: int | None = None  # time stamp of the previous frame, if it is interlaced
        self._first: int | None = None  # time stamp of the first frame that can be shown
        self._begun = False
        self._since: str | None = None  # place and cause of the current damage
        self._key: float | None = None  # time stamp of the key frame that may end the damage
        self._lost_here = 0
        # Not `err_detect=explode`: with threads, H.264 would fail from the first open group on.
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.thread_type = "SLICE" if live else "AUTO"

    def frames(self, packets: Iterable[Packet]) -> Iterator[VideoFrame]:
        """The frames in presentation order.

        Raises:
            YolactError: there is no decoder for the stream.
        """
        av = load_av()
        for packet in packets:
            if packet.size:
                if not self._begun and packet.is_keyframe:
                    self._first = packet.pts
                self._begun = True
                if self._since is not None and not self._is_whole(packet):
                    self._lost_here += 1
                    continue
                if packet.pts is not None and not packet.is_discard:
                    self._pending[packet.pts] = None
            try:
                for frame in packet.decode():
                    yield self._came(frame)
                if not packet.size:  # another recording may follow
                    self._stream.codec_context.flush_buffers()
            except EOFError:
                continue
            except av.error.DecoderNotFoundError as error:
                raise YolactError(f"video {self._name}: this PyAV has no decoder for it") from error
            except (av.FFmpegError, ValueError, MemoryError) as error:
                yield from self._damage(packet, error)
        self._pass_over(self._pending)
        self._vanished()
        self._report()

    def seconds(self, frame: VideoFrame) -> float | None:
        """The time stamp of a frame of this stream in seconds."""
        # A frame flushed out of the decoder does not know its time base.
        stamp = frame.pts if self._ordered or frame.dts is None else frame.dts
        return None if stamp is None else float(stamp * self._tick)

    def duration(self, frame: VideoFrame) -> float | None:
        """Seconds that a frame of this stream is shown; None if the file does not say."""
        seconds = float(frame.duration * self._tick)
        return seconds if 0 < seconds <= _LEAP else None

    def finish(self) -> None:
        """Report the total loss if not every damaged place was reported."""
        if self._places > _REPORTED_PLACES:
            log.warning(
                "video %s is damaged in %d places: %d frames lost", self._name, self._places, self.lost
            )

    def _came(self, frame: VideoFrame) -> VideoFrame:
        """Note which frames are still missing now that `frame` has come; returns it."""
        if frame.pts in self._absent:
            self._absent.remove(frame.pts)
            self._late += 1
            # Times of decoding, as ASF has them for frames that refer to later ones.
            self._ordered = self._late < _LATE
        if self._first is None:  # the first packet was no key frame
            self._first = frame.pts
        self._after += 1
        if frame.pts in self._pending:
            # Frames come in order of their times: those pending before this one were dropped.
            passed = [pts for pts in self._pending if pts < frame.pts]
            for pts in [*passed, frame.pts]:
                del self._pending[pts]
            self._pass_over(passed)
            self._fields_from = frame.pts if frame.interlaced_frame else None
        if not self._ordered:
            self._absent.clear()
        elif self._after > _REORDERED:
            self._vanished()
        return frame

    def _pass_over(self, stamps: Iterable[int]) -> None:
        """Note time stamps without a frame, except that of the second field of the frame before."""
        start = self._fields_from
        gone = [pts for pts in stamps if start is None or not 0 < (pts - start) * self._tick < _FIELD]
        if gone:
            self._absent += gone
            self._after = 0

    def _vanished(self) -> None:
        """Count frames that the decoder dropped silently."""
        gone, self._absent = self._absent, []
        if not gone or self._live or self._stream.codec_context.name in _HIDDEN:
            return
        if early := [pts for pts in gone if self._first is None or pts < self._first]:
            log.warning(
                "video %s begins between key frames: %s before the first cannot be decoded",
                self._name, counted(len(early), "frame"),
            )  # fmt: skip
        if gone := [pts for pts in gone if pts not in early]:
            self._begin(min(gone), "the decoder dropped it")
            self._lost_here += len(gone)
            self._key = self._key or _DECODING
            self._report()

    def _damage(self, packet: Packet, error: Exception) -> Iterator[VideoFrame]:
        """Yield the good frames still inside the decoder, and wait for a key frame."""
        self._vanished()
        missing = list(self._pending)
        if not self._live:
            # With threads the error comes late: frames after the damage, decoded from it, may be inside too.
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
        """Whether a packet after damage depends on nothing lost: a key frame, and what is shown after it."""
        if not self._live:
            if packet.is_keyframe and self._key is None:
                self._key = _DECODING if packet.pts is None else packet.pts
                return True
            if self._key is None:
                return False
            if (packet.pts or 0) < self._key:
                return False  # shown before the key frame, and predicted from frames on both sides of it
        self._report()
        return True

    def _report(self) -> None:
        """Log the damage that has ended."""
        if self._since is None:
            return
        self._places += 1
        self.lost += self._lost_here
        if self._places <= _REPORTED_PLACES:
            rest = "to its end" if self._key is None and not self._live else "then decoding goes on"
            frames = counted(self._lost_here, "frame")
            log.warning("video %s is damaged%s: %s lost, %s", self._name, self._since, frames, rest)
        self._since = self._key = None


class Picture:
    """A decoded frame, which `read` converts to pixels and releases."""

    def __init__(self, frame: VideoFrame, name: str, orientation: Orientation) -> None:
        self._frame: VideoFrame | None = frame
        self._name = name
        self._orientation = orientation

    def read(self) -> np.ndarray:
        """(H, W, 3) uint8 BGR, oriented for display. May be called once.

        Raises:
            YolactError: the pixel format cannot be converted, or memory is short.
        """
        frame, self._frame = self._frame, None
        if frame is None:
            raise YolactError(f"frame {self._name} was read before")
        try:
            return self._orientation.apply(to_bgr(frame))
        except (ValueError, MemoryError, load_av().FFmpegError) as error:
            raise YolactError(f"frame {self._name} cannot be converted: {first_line(error)}") from error


class Orientation(NamedTuple):
    """How pictures are rotated and mirrored for display.

    Attributes:
        swap: Transpose rows and columns, before the others.
        mirror: Mirror left to right.
        flip: Flip top to bottom.
    """

    swap: bool = False
    mirror: bool = False
    flip: bool = False

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The displayed image, (H, W, 3), contiguous."""
        if self.swap:
            image = image.transpose(1, 0, 2)
        if self.mirror:
            image = image[:, ::-1]
        if self.flip:
            image = image[::-1]
        return np.ascontiguousarray(image)


def orientation(frame: VideoFrame, tags: dict[str, str], name: str) -> Orientation:
    """The orientation given by a frame's display matrix, or else by an old `rotate` tag of the stream.

    A rotation that is not a multiple of 90 degrees is ignored with a warning.
    """
    ignored = "video %s: its rotation is not a multiple of 90 degrees; it is ignored"
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        matrix = matrix if matrix is None or len(bytes(matrix)) == 36 else None
    except ValueError:
        # PyAV fails on all side data if it does not know one kind, such as EXIF; this ignores mirroring.
        matrix, tags = None, {"rotate": str(-frame.rotation)} if frame.rotation else tags
    if matrix is not None:
        # Nine fixed-point numbers a b u c d v x y w; a point (p, q) goes to (a p + c q + x, b p + d q + y).
        a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
        straight, across = max(abs(a), abs(d)), max(abs(b), abs(c))
        if min(abs(a), abs(d)) > 50 * across:
            return Orientation(mirror=a < 0, flip=d < 0)
        if min(abs(b), abs(c)) > 50 * straight:
            return Orientation(swap=True, mirror=c < 0, flip=b < 0)
        log.warning(ignored, name)
        return Orientation()
    tag = next((value for key, value in tags.items() if key.lower() == "rotate"), "0")
    try:
        turns, rest = divmod(float(tag), 90)
    except ValueError:
        turns, rest = 0, 1
    if rest or abs(turns) > 1e6:
        log.warning(ignored.replace("not", "%r, not"), name, tag[:20])
        return Orientation()
    quarter = int(turns) % 4
    return Orientation(swap=quarter in (1, 3), mirror=quarter in (1, 2), flip=quarter in (2, 3))
