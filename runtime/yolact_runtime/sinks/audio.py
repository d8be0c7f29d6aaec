"""Copies the audio of a video into its annotated version, without encoding it again."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_runtime.errors import YolactError
from yolact_runtime.sources.libav import load_av, moving_pictures, open_video, reason, start_of

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet

log = logging.getLogger(__name__)


class AudioCopy:
    """Copies the audio of `source` into `output`, up to the current picture.

    Attributes:
        codecs: Codec names of the copied tracks.
    """

    def __init__(self, source: Path, output: OutputContainer, target: Path) -> None:
        """Add the tracks to `output`, the container of the file `target`, before its header is written.

        A warning names the tracks that it does not support.
        """
        self.codecs: list[str] = []
        self._source = source
        self._tracks: dict[int, AudioStream] = {}
        self._start = 0.0
        self._container: InputContainer | None = None
        self._packets: Iterator[Packet] = iter(())
        self._next: Packet | None = None
        self._last: dict[int, int] = {}  # time stamp of the previous packet, by output track
        try:
            self._container = open_video(source)
        except YolactError as error:
            log.warning("%s has no sound: %s", target, error)
            return
        pictures = moving_pictures(self._container)
        self._start = (start_of(pictures) if pictures else None) or 0.0
        for stream in self._container.streams.audio:
            # PyAV has no context for a codec without a decoder.
            codec = stream.codec_context.name if stream.codec_context else "unknown"
            if stream.codec_context and takes_audio(output.format.name, source, stream.index):
                self._tracks[stream.index] = output.add_stream_from_template(stream)
                self.codecs.append(codec)
            else:
                log.warning("%s has no sound: %s cannot hold %s audio", target, target.suffix, codec)
        if self._tracks:
            chosen = [stream for stream in self._container.streams.audio if stream.index in self._tracks]
            self._packets = self._container.demux(*chosen)
            self._advance()

    def packets(self, until: float) -> Iterator[Packet]:
        """The packets up to `until`, in seconds of the video, that were not returned before."""
        while self._next is not None and self._time(self._next) <= until:
            packet = self._next
            assert packet.time_base is not None
            shift = round(self._start / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - shift
            packet.stream = self._tracks[packet.stream.index]
            if packet.dts is not None and packet.dts > self._last.get(packet.stream.index, -(1 << 62)):
                self._last[packet.stream.index] = packet.dts
                yield packet
            self._advance()

    def close(self) -> None:
        """Close the source."""
        self._next, self._packets = None, iter(())
        if self._container is not None:
            self._container.close()
            self._container = None

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


def takes_audio(container: str, source: Path, index: int) -> bool:
    """Whether a container format supports the audio of stream `index` of `source`.

    Only a muxer knows, and some fail late, so a file with the first packet is written in memory.
    """
    av = load_av()
    try:
        with open_video(source) as opened, av.open(io.BytesIO(), "w", format=container) as trial:
            stream = opened.streams[index]
            track = trial.add_stream_from_template(stream)
            packet = next(item for item in opened.demux(stream) if item.size)
            packet.stream = track
            trial.mux_one(packet)
    except (av.FFmpegError, YolactError, StopIteration, ValueError):
        return False
    return True
