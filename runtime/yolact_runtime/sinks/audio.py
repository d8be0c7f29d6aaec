"""Copies the audio of a video into its annotated version, without encoding it again."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_runtime.errors import YolactError
from yolact_runtime.sources.libav import demux, load_av, moving_pictures, open_video, reason, start_of
from yolact_runtime.sources.timeline import LEAP_FILE, Timeline

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet

log = logging.getLogger(__name__)

# Sound after the last picture is kept if the source has no picture later than this many seconds after it.
_END = 1.0
_UNHEARD = 0.1  # seconds of sound whose loss needs no warning
# How packets begin in transport and program streams, where a broadcast may change the codec of a track: mask
# and value of the first 16 bits.
_SYNC = {
    "aac": (0xFFF6, 0xFFF0), "mp2": (0xFFE6, 0xFFE4), "mp3": (0xFFE6, 0xFFE2),
    "ac3": (0xFFFF, 0x0B77), "eac3": (0xFFFF, 0x0B77),
}  # fmt: skip
_OVERLAPS, _FOREIGN = "overlaps other sound where its clock restarts", "changes its codec within the file"


class AudioCopy:
    """Copies the audio of `source` into `output`, up to the current picture.

    Attributes:
        codecs: Codec names of the copied tracks.
        lead: Seconds by which the sound begins before the picture. The output begins with the sound, as not
            every container holds negative times: packets are later by `lead`, and pictures must be too.
    """

    def __init__(self, source: Path, output: OutputContainer, target: Path) -> None:
        """Add the tracks to `output`, the container of the file `target`, before its header is written.

        A warning names the tracks that it does not support.
        """
        self.codecs: list[str] = []
        self.lead = 0.0
        self._source, self._target = source, target
        self._tracks: dict[int, _Track] = {}
        self._start = 0.0
        self._container: InputContainer | None = None
        self._packets: Iterator[Packet] = iter(())
        self._next: Packet | None = None
        try:
            self._container = open_video(source)
        except YolactError as error:
            log.warning("%s has no sound: %s", target, error)
            return
        pictures = moving_pictures(self._container)
        for stream in self._container.streams.audio:
            # PyAV has no context for a codec without a decoder.
            codec = stream.codec_context.name if stream.codec_context else "unknown"
            if stream.codec_context and takes_audio(output.format.name, source, stream.index):
                track = output.add_stream_from_template(stream)
                track.metadata.update(_described(stream))
                # PyAV 17.0 takes nothing but a number.
                track.disposition = stream.disposition.value  # type: ignore[assignment]
                sync = _SYNC.get(codec) if self._container.format.name in ("mpeg", "mpegts") else None
                self._tracks[stream.index] = _Track(track, start_of(stream), sync)
                self.codecs.append(codec)
            else:
                kept = stream.codec_context and takes_audio("matroska", source, stream.index)
                log.warning(
                    "%s has no sound: %s cannot hold %s audio%s",
                    target, target.suffix, codec, "; --video IN:OUT.mkv keeps it" if kept else "",
                )  # fmt: skip
        if self._tracks and pictures is not None:
            timeline = Timeline(self._container, pictures)
            self._start = timeline.start or 0.0
            for one in self._tracks.values():
                one.start = None if one.start is None else timeline.unwrapped(one.start)
            starts = [one.start for one in self._tracks.values() if one.start is not None]
            lead = self._start - min(starts, default=self._start)
            self.lead = lead if 0 < lead < LEAP_FILE else 0.0
            self._packets = timeline.packets()
            self._advance()

    def packets(self, until: float) -> Iterator[Packet]:
        """The packets up to `until`, in seconds of the video, that were not returned before."""
        while self._next is not None and self._time(self._next) <= until:
            packet, track = self._next, self._tracks.get(self._next.stream.index)
            if track is not None and self._fits(packet, track):
                yield packet
            self._advance()

    def rest(self, seen: float) -> Iterator[Packet]:
        """The packets after the last picture, which ended at `seen` seconds of the video.

        All of them if the source has no picture later than a second after it; otherwise the run ended early,
        and the sound ends with the picture.
        """
        kept = []
        while self._next is not None:
            packet, track = self._next, self._tracks.get(self._next.stream.index)
            if track is not None:
                kept.append(packet)
            elif self._time(packet) > seen + _END and not packet.is_discard:
                kept = [packet for packet in kept if self._time(packet) <= seen]
                break
            self._advance()
        yield from (packet for packet in kept if self._fits(packet, self._tracks[packet.stream.index]))
        self._report()

    def close(self) -> None:
        """Close the source."""
        self._next, self._packets = None, iter(())
        if self._container is not None:
            self._container.close()
            self._container = None

    def _fits(self, packet: Packet, track: _Track) -> bool:
        """Prepare a packet for the output; False for what is not heard, or cannot be kept."""
        assert packet.time_base is not None
        stamp = packet.pts if packet.pts is not None else packet.dts
        assert stamp is not None
        # An edit list hides sound. The decoder needs it ahead of the first that is heard, but not later.
        if packet.is_discard and (track.start is None or float(stamp * packet.time_base) >= track.start):
            return False
        shift = round((self.lead - self._start) / packet.time_base)
        packet.pts = stamp + shift
        packet.dts = packet.pts if packet.dts is None else packet.dts + shift
        mask, value = track.sync or (0, 0)
        foreign = bool(mask) and int.from_bytes(bytes(packet)[:2], "big") & mask != value
        if foreign or (track.last is not None and packet.dts <= track.last):
            cause = _FOREIGN if foreign else _OVERLAPS
            seconds = float((packet.duration or 0) * packet.time_base)
            track.lost[cause] = track.lost.get(cause, 0.0) + seconds
            return False
        track.last = packet.dts
        packet.stream = track.output
        return True

    def _report(self) -> None:
        for cause in (_OVERLAPS, _FOREIGN):
            lost = max((track.lost.get(cause, 0.0) for track in self._tracks.values()), default=0.0)
            if lost > _UNHEARD:
                log.warning(
                    "%s lacks %.2f s of the sound of %s, which %s", self._target, lost, self._source, cause
                )

    def _time(self, packet: Packet) -> float:
        stamp = packet.pts if packet.pts is not None else packet.dts
        assert stamp is not None and packet.time_base is not None
        return float(stamp * packet.time_base) - self._start

    def _advance(self) -> None:
        try:
            self._next = next(
                (item for item in self._packets if item.size and (item.pts, item.dts) != (None, None)), None
            )
        except (load_av().FFmpegError, ValueError) as error:
            log.warning("the sound of %s ends early: %s", self._source, reason(error))
            self._next = None


@dataclass
class _Track:
    """A track of the output, and where it is."""

    output: AudioStream
    start: float | None  # of the sound that is heard, in seconds of the source
    sync: tuple[int, int] | None  # how its packets begin, as of `_SYNC`
    last: int | None = None  # time stamp of the previous packet
    lost: dict[str, float] = field(default_factory=dict)  # seconds that were left out, by the cause


def _described(stream: AudioStream) -> dict[str, str]:
    """The tags of a track that a listener chooses by."""
    return {key: value for key, value in stream.metadata.items() if key.lower() in ("language", "title")}


def takes_audio(container: str, source: Path, index: int) -> bool:
    """Whether a container format supports the audio of stream `index` of `source`.

    Only a muxer knows, and some fail late, so a file with the first packet is written in memory.
    """
    av = load_av()
    try:
        with open_video(source) as opened, av.open(io.BytesIO(), "w", format=container) as trial:
            stream = opened.streams[index]
            track = trial.add_stream_from_template(stream)
            packet = next(item for item in demux(opened, stream) if item.size)
            packet.stream = track
            trial.mux_one(packet)
    except (av.FFmpegError, YolactError, StopIteration, ValueError):
        return False
    return True
