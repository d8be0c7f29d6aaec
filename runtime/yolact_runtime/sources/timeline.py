"""One continuous clock for the packets of a file, also where its time stamps begin anew."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from yolact_runtime.sources.libav import demux, load_av, period_of, start_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

# Steps back, in seconds and in frame periods, that rounded or repeated time stamps cause; more is a restart.
BACK, JITTER = 0.1, 2.5
# Larger steps forward, in seconds, mean that the clock was set: in formats whose clock may jump, such as
# transport streams, and in files, in which one picture may be shown for long, but not longer than an MP4 can
# represent.
LEAP_STREAM, LEAP_FILE = 10.0, 12 * 3600.0
# Transport streams count 90,000 ticks a second in 33 bits.
_CLOCK, _WRAP = 90_000, 1 << 33
_UNREAD = 0.1  # part of a transport stream without packets that is reported
_PEEKED = 8  # pictures read in advance
_LONGEST_STEP = 1.0  # seconds; longer ones say nothing about the frame rate
# Number of pictures that sound which jumps waits for the pictures to jump too.
_PATIENCE = 100
# Seconds by which sound must be nearer to the pictures after a jump to belong to them without jumping itself.
_NEARER = 2.0


@dataclass
class _Segment:
    """A stretch of the file with one clock; times in seconds, `last` before and `offset` to the timeline."""

    offset: float
    last: float


@dataclass
class _Track:
    """One stream: where its clock is, and the packets that wait for the next segment."""

    tick: float
    segment: int = 0
    offset: float = 0.0
    last: float | None = None  # time stamp of its last packet, in seconds of the file
    step: float = 0.0  # seconds from that packet to the next
    held: list[Packet] = field(default_factory=list)


class Timeline:
    """The packets of the pictures and the sound of a file, with time stamps that continue where those of the
    file restart or leap: joined recordings, a counter that was reset, pauses of a recorder.

    The pictures decide where a new segment begins: one frame period after the last one. Sound that jumps
    enters the segment of the pictures it belongs to, and so stays in step with them.
    """

    def __init__(self, container: InputContainer, pictures: VideoStream, name: str = "") -> None:
        """Prepare; `packets` reads the container from where it is, and reports leaps of the video `name`."""
        self.start = start_of(pictures)
        self.period = period_of(pictures)
        self._name = name
        self._pictures = pictures
        discontinuous = bool(container.format.flags & load_av().format.Flags.ts_discont.value)
        self._leap = LEAP_STREAM if discontinuous else LEAP_FILE
        wraps = discontinuous and pictures.time_base == Fraction(1, _CLOCK)
        self._turn = _WRAP / _CLOCK if wraps else math.inf  # seconds after which the counter is 0 again
        self._near = self.start or 0.0  # latest picture, in seconds of the file
        self._demuxed = demux(container, pictures, *(one for one in container.streams.audio if one.time_base))
        self._head: list[Packet] = []
        self._failure: Exception | None = None
        self._tracks = {
            stream.index: _Track(float(stream.time_base))
            for stream in (pictures, *container.streams.audio)
            if stream.time_base
        }
        self._segments = [_Segment(0.0, -1.0)]
        self._end = -math.inf  # of the latest picture, on the timeline
        self._waited = 0
        self._read = 0  # bytes of the file up to the latest packet
        self._size = container.size if container.format.name == "mpegts" else 0
        self._peek()

    def unwrapped(self, seconds: float) -> float:
        """Seconds of a counter of 33 bits as the time nearest to the latest picture."""
        return seconds + self._turns(seconds) * self._turn if math.isfinite(self._turn) else seconds

    def packets(self) -> Iterator[Packet]:
        """The packets, each stream in its order; empty packets, at the end and at joints, flush decoders."""
        for packet in self._raw():
            track = self._tracks.get(packet.stream.index)
            self._read = max(self._read, (packet.pos or 0) + packet.size)
            if math.isfinite(self._turn) and packet.time_base:
                self._unwrap(packet)
            if track is None or not packet.size or _stamp(packet) is None:
                if not packet.size:
                    yield from self._release()
                yield packet
            elif packet.is_discard:  # hidden by an edit list; it may precede what was shown before
                yield _shifted(packet, track)
            elif packet.stream.index == self._pictures.index:
                segments = len(self._segments)
                shown = self._picture(packet, track)
                if len(self._segments) > segments and packet.is_keyframe:
                    yield self._flush()
                yield shown
                if any(other.held for other in self._tracks.values()):
                    self._waited += 1
                    if self._waited > _PATIENCE:
                        yield from self._release()
            else:
                yield from self._sound(packet, track)
        if self._name and self._size - self._read > _UNREAD * self._size:
            log.warning(
                "video %s: its last %.1f MB have none of its pictures and sound; "
                "if other streams begin there, they are not read",
                self._name, (self._size - self._read) / 1e6,
            )  # fmt: skip

    def _flush(self) -> Packet:
        """An empty packet of the pictures. Decoders drop what they hold where another recording begins."""
        from av import Packet as NewPacket

        packet = NewPacket()
        packet.stream = self._pictures
        return packet

    def _peek(self) -> None:
        """Read the first pictures, as the header of short files may say that they start later."""
        shown = 0
        try:
            while shown < _PEEKED and len(self._head) < 100 * _PEEKED:
                packet = next(self._demuxed, None)
                if packet is None:
                    return
                self._head.append(packet)
                if (
                    packet.stream.index == self._pictures.index
                    and packet.pts is not None
                    and packet.time_base
                ):
                    shown += 1
                    time = self.unwrapped(float(packet.pts * packet.time_base))
                    if not packet.is_discard and self.start is not None:
                        self.start = min(self.start, time)
        except (load_av().FFmpegError, ValueError) as error:
            self._failure = error

    def _raw(self) -> Iterator[Packet]:
        """The packets with the time stamps of the file."""
        while self._head:
            yield self._head.pop(0)
        if self._failure is not None:
            raise self._failure
        yield from self._demuxed

    def _picture(self, packet: Packet, track: _Track) -> Packet:
        """A picture on the timeline; one that jumps begins a segment."""
        # In the order of decoding only `dts` grows; some packets have none.
        if packet.dts is not None:
            time = packet.dts * track.tick
            if self._jumps(track, time, JITTER * self.period) and not self._is_still(track, time):
                assert track.last is not None
                if self._name and time > track.last:
                    log.warning(
                        "video %s: its clock leaps by %.1f s, %.2f s after the start; the gap is closed",
                        self._name, time - track.last, self._end + track.step - (self.start or 0.0),
                    )  # fmt: skip
                shown = time if packet.pts is None else packet.pts * track.tick
                step = track.step or self.period
                track.offset = max(track.last + track.offset + step - time, self._end + step - shown)
                self._segments.append(_Segment(track.offset, time))
            elif track.last is not None and 0 < time - track.last <= _LONGEST_STEP:
                # Measured, as the header's rate is wrong where its times are.
                track.step = time - track.last
            track.last = self._near = self._segments[-1].last = time
        _shifted(packet, track)
        stamp = packet.dts if packet.pts is None else packet.pts
        assert stamp is not None
        self._end = max(self._end, stamp * track.tick)
        return packet

    def _turns(self, seconds: float) -> int:
        return round((self._near - seconds) / self._turn)

    def _unwrap(self, packet: Packet) -> None:
        if packet.pts is not None and (turns := self._turns(packet.pts * float(packet.time_base))):
            packet.pts += turns * _WRAP
        if packet.dts is not None and (turns := self._turns(packet.dts * float(packet.time_base))):
            packet.dts += turns * _WRAP

    def _is_still(self, track: _Track, time: float) -> bool:
        """Whether sound went on during a leap forward of the pictures: then one was shown for long."""
        assert track.last is not None
        sound = [
            other.last for other in self._tracks.values() if other is not track and other.last is not None
        ]
        return time > track.last and any(time - last < self._leap for last in sound)

    def _sound(self, packet: Packet, track: _Track) -> Iterator[Packet]:
        """The packet on the timeline, or nothing while it waits for the pictures."""
        time = _time(packet, track)
        newer = range(track.segment + 1, len(self._segments))
        jumps = self._jumps(track, time, BACK)
        if newer and (jumps or track.held or self._is_nearer(track, time)):
            if track.held:
                yield from self._enter(track, newer[0])
            else:
                self._move(track, min(newer, key=lambda number: abs(self._segments[number].last - time)))
        elif track.held or jumps:
            if not any(other.held for other in self._tracks.values()):
                self._waited = 0
            track.held.append(packet)
            return
        yield self._pass(packet, track)

    def _release(self) -> Iterator[Packet]:
        """Let go of waiting sound: the pictures have jumped, or will not."""
        for track in self._tracks.values():
            if track.held:
                newer = range(track.segment + 1, len(self._segments))
                yield from self._enter(track, newer[0] if newer else None)

    def _enter(self, track: _Track, number: int | None) -> Iterator[Packet]:
        """Let the waiting packets into a segment of the pictures; None: only the sound has jumped."""
        held, track.held = track.held, []
        if number is not None:
            self._move(track, number)
        elif held:
            time = _time(held[0], track)
            if track.last is not None and time < track.last:  # a leap forward is a gap in the sound
                track.offset += track.last + track.step - time
        for packet in held:
            yield self._pass(packet, track)

    def _move(self, track: _Track, number: int) -> None:
        track.segment, track.offset = number, self._segments[number].offset

    def _pass(self, packet: Packet, track: _Track) -> Packet:
        track.last = _time(packet, track)
        track.step = (packet.duration or 0) * track.tick
        return _shifted(packet, track)

    def _jumps(self, track: _Track, time: float, back: float) -> bool:
        return track.last is not None and not -back <= time - track.last <= self._leap

    def _is_nearer(self, track: _Track, time: float) -> bool:
        """Whether sound that does not jump is near the pictures of the newest segment, far from its own."""
        own, newest = self._segments[track.segment], self._segments[-1]
        return abs(time - newest.last) + _NEARER < abs(time - own.last)


def _stamp(packet: Packet) -> int | None:
    return packet.pts if packet.dts is None else packet.dts


def _time(packet: Packet, track: _Track) -> float:
    stamp = _stamp(packet)
    assert stamp is not None
    return stamp * track.tick


def _shifted(packet: Packet, track: _Track) -> Packet:
    ticks = round(track.offset / track.tick)
    if ticks:
        packet.pts = None if packet.pts is None else packet.pts + ticks
        packet.dts = None if packet.dts is None else packet.dts + ticks
    return packet
