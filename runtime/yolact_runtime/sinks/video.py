"""Annotated videos."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from yolact_runtime.errors import ItemError, UsageError, YolactError
from yolact_runtime.files import atomic_path
from yolact_runtime.frames import Frame, Sink
from yolact_runtime.outputs import identity_of
from yolact_runtime.results import Result
from yolact_runtime.sinks.audio import AudioCopy
from yolact_runtime.sinks.items import item_output
from yolact_runtime.sinks.names import file_stem
from yolact_runtime.sources.libav import (
    from_bgr,
    load_av,
    moving_pictures,
    open_video,
    period_of,
    reason,
    to_bgr,
)

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

log = logging.getLogger(__name__)

# Containers that support H.264 and play everywhere; others become MP4.
_KEPT_SUFFIXES = (".m4v", ".mkv", ".mov", ".mp4")
_TIME_BASE = Fraction(1, 60_000)  # the finest of MPEG-4 Part 2; exact for 24, 25, 30, 50 and 60 fps
_LEAST_STEP = Fraction(1, 1000)  # seconds; the resolution of Matroska


class VideoSink(Sink):
    """One annotated video per source: `a.mp4` becomes `FOLDER/a.mp4`, a camera `FOLDER/rtsp_host_1.mkv`.

    Frames without a time are images and are ignored. Each file is written under a temporary name and renamed
    when the next video begins or at `close`, which an interrupted run also calls.

    Attributes:
        outputs: The finished files.
    """

    def __init__(
        self,
        folder: str | Path,
        crf: int = 20,
        preset: str = "veryfast",
        keep: Iterable[str | Path] = (),
        target: str | Path | None = None,
        stem: str = "",
        taken: set[Path] | None = None,
    ) -> None:
        """Prepare; the first frame opens a file.

        Args:
            folder: Folder of the videos; created if missing.
            crf: Constant rate factor of x264, 0..51: 0 is lossless, 18 visually lossless, 28 small.
            preset: x264's trade of speed for size, `ultrafast` to `veryslow`.
            keep: Files that are never overwritten, such as the sources.
            target: File for the first video, in place of one in `folder`; it is overwritten.
            stem: Name of recordings without its suffix, in place of one after their address.
            taken: Names that are given, if several sinks write to `folder`.

        Raises:
            YolactError: PyAV is missing.
            UsageError: `crf` is out of range, or the suffix of `target` is not that of a supported container.
        """
        if not 0 <= crf <= 51:
            raise UsageError(f"the quality (crf) of a video is {crf}; it must be in 0..51")
        if target is not None:
            check_video_suffix(Path(target))
        load_av()
        self._single = None if target is None else Path(target)
        self.outputs: list[Path] = []
        self._folder = Path(folder)
        self._quality = crf, preset
        self._stem = stem
        self._taken = set() if taken is None else taken
        self._kept = {identity_of(path) for path in keep}
        self._folders = {identity_of(Path(path).parent) for path in keep}
        self._writer: _Writer | None = None
        self._refused: tuple[Path, str] | None = None  # the source whose video cannot be written, and why

    def prepare(self, frame: Frame, image: np.ndarray, result: Result) -> Any:
        """Draw, and convert to the encoder's pixel format; None for an image."""
        if frame.time is None:
            return None
        return from_bgr(result.draw(image))

    def write(self, frame: Frame, prepared: Any) -> None:
        """Encode a frame, and copy the audio up to it.

        Raises:
            ItemError: the file of this video cannot be created.
            YolactError: the file cannot be written; it is removed.
        """
        if prepared is None:
            return
        if self._writer is not None and not self._writer.continues(frame):
            self.close()
        if self._writer is None:
            self._writer = self._open(frame, prepared)
        try:
            self._writer.add(frame, prepared)
        except YolactError:
            self._writer = None
            raise

    def _open(self, frame: Frame, prepared: VideoFrame) -> _Writer:
        """Begin the file of a video; if that is not possible, all its frames fail, and no others."""
        if self._refused is not None and self._refused[0] == frame.path:
            raise ItemError(self._refused[1])
        try:
            return _Writer(frame, prepared, self._target(frame), *self._quality)
        except ItemError as error:
            self._refused = frame.path, str(error)
            raise

    def close(self) -> None:
        """Finish the current video with the frames so far; raises a YolactError if it cannot be written."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.finish()
            self.outputs.append(writer.target)

    def written(self) -> list[str]:
        return [str(path) for path in self.outputs]

    def _target(self, frame: Frame) -> Path:
        """The path for the video that begins with `frame`: the single target, or one that is free."""
        single, self._single = self._single, None
        if single is not None:
            return single
        if frame.path.is_file():
            suffix = frame.path.suffix.lower()
            stem, suffix = frame.path.stem, suffix if suffix in _KEPT_SUFFIXES else ".mp4"
        else:
            # A recording without an end: Matroska plays even if the process is killed.
            stem = self._stem or file_stem(frame.name.rpartition("#")[0])
            suffix = ".mkv"
        if frame.path.is_file():
            self._kept.add(identity_of(frame.path))
        # In a folder of sources, nothing is written over.
        careful = identity_of(self._folder) in {*self._folders, identity_of(frame.path.parent)}
        target, number = self._folder / (stem + suffix), 2
        while (
            target.resolve() in self._taken
            or identity_of(target) in self._kept
            or (careful and os.path.lexists(target))
        ):
            target = self._folder / f"{stem}_{number}{suffix}"
            number += 1
        self._taken.add(target.resolve())
        return target


def check_video_suffix(path: Path) -> None:
    """Raise a UsageError if videos cannot be written with the suffix of `path`."""
    if path.suffix.lower() not in _KEPT_SUFFIXES:
        raise UsageError(f"cannot write a video as {path}; known suffixes are {', '.join(_KEPT_SUFFIXES)}")


class _Writer:
    """One video file while it is written."""

    def __init__(self, frame: Frame, first: VideoFrame, target: Path, crf: int, preset: str) -> None:
        """Open the file and its encoder; `first` is the converted picture of `frame`."""
        av = load_av()
        self.source = frame.path
        self._begin = -float("inf") if frame.time is None else frame.time
        self.target = target
        self._frames = 0
        self._seen = 0.0  # end of the last picture, in seconds of the source
        self._last = -1_000_000  # in units of the encoder's time base
        self._durations: dict[int | None, int] = {}  # of the pictures in the encoder, by their time
        self._size = (first.width, first.height)
        self._resized = False
        self._muted = False
        self._period = 1 / 25
        self._audio: AudioCopy | None = None
        self._stack = contextlib.ExitStack()
        self._codec = "H.264" if "libx264" in av.codecs_available else "MPEG-4 Part 2"
        if self._codec != "H.264":
            if "mpeg4" not in av.codecs_available:
                raise YolactError(f"cannot write {target}: this PyAV has no encoder libx264 or mpeg4")
            log.warning("%s is written as MPEG-4 Part 2: this PyAV has no H.264 encoder (libx264)", target)
        with self._guarded():
            with item_output(target):
                # A recording cannot be had again.
                recording = not frame.path.is_file()
                temporary = self._stack.enter_context(atomic_path(target, keep=recording))
            # A recording is flushed packet by packet; an MP4 gets its index in front, for browsers.
            options = (
                {"flush_packets": "1"} if target.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
            )
            self._container = self._stack.enter_context(av.open(str(temporary), "w", options=options))
            aspect = self._look_at_source()
            self._stream = self._container.add_stream(
                "libx264" if self._codec == "H.264" else "mpeg4",
                rate=Fraction(1 / self._period).limit_denominator(1001),
            )
            context = self._stream.codec_context
            context.width, context.height = self._size
            context.pix_fmt = "yuv420p"
            context.time_base = _TIME_BASE
            context.colorspace, context.color_range = first.colorspace, first.color_range
            if aspect:
                context.sample_aspect_ratio = aspect
            context.options = {"crf": str(crf), "preset": preset}
            if self._codec != "H.264":  # its scale is 1 (best) to 31
                context.options = {"qmin": "1", "qmax": str(max(1, round(crf / 51 * 31)))}
            if frame.path.is_file():
                self._audio = AudioCopy(frame.path, self._container, target)
                self._stack.callback(self._audio.close)
            # Opens the encoder here, so that a failure is reported as such.
            self._container.start_encoding()

    def continues(self, frame: Frame) -> bool:
        """Whether a frame belongs to this file; a video that is named twice starts a second file."""
        assert frame.time is not None
        return frame.path == self.source and frame.time > self._begin

    def add(self, frame: Frame, picture: VideoFrame) -> None:
        """Encode a picture at the time of its frame, after the audio up to then."""
        assert frame.time is not None
        with self._guarded():
            if (picture.width, picture.height) != self._size:
                picture = self._fit(picture)
            base = self._stream.codec_context.time_base
            time = frame.time + (self._audio.lead if self._audio else 0.0)
            self._last = max(round(time / base), self._last + round(_LEAST_STEP / base))
            picture.pts, picture.time_base = self._last, base
            self._durations[self._last] = round((frame.duration or self._period) / base)
            self._seen = frame.time + self._period
            self._mux_audio(frame.time)
            self._encode(picture)
            self._frames += 1

    def finish(self) -> None:
        """Flush the encoder, copy the remaining audio and rename the file."""
        with self._guarded():
            self._encode(None)
            for packet in self._audio.rest(self._seen) if self._audio else ():
                self._mux(packet)
            self._stack.close()
        sound = f" and {', '.join(self._audio.codecs)} audio" if self._audio and self._audio.codecs else ""
        log.info(
            "%s: %d frames of %d x %d, %s%s",
            self.target, self._frames, *self._size, self._codec, sound,
        )  # fmt: skip

    def _encode(self, picture: VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            # Encoders leave it out; the last one decides how long the file is.
            packet.duration = self._durations.pop(packet.pts, 0)
            self._mux(packet)

    def _mux_audio(self, until: float) -> None:
        if self._audio is not None:
            for packet in self._audio.packets(until):
                self._mux(packet)

    def _mux(self, packet: Packet) -> None:
        try:
            self._container.mux_one(packet)
        except load_av().FFmpegError as error:
            # Interleaving may report a damaged audio packet when the next picture comes.
            if isinstance(error, OSError) or self._audio is None:
                raise
            if not self._muted:
                log.warning("damaged audio of %s is left out: %s", self.source, reason(error))
            self._muted = True

    def _look_at_source(self) -> Fraction | None:
        """Read the frame rate of the source; return its pixel aspect ratio unless it is 1."""
        if not self.source.is_file():
            return None
        try:
            with open_video(self.source) as container:
                stream = moving_pictures(container)
                if stream is None:
                    return None
                self._period = period_of(stream)
                aspect, context = stream.sample_aspect_ratio, stream.codec_context
                if not aspect or aspect == 1:
                    return None
                # If rotated by a quarter turn, width and height are swapped.
                turned = (context.width > context.height) != (self._size[0] > self._size[1])
                return 1 / aspect if turned else aspect
        except YolactError:
            return None

    def _fit(self, picture: VideoFrame) -> VideoFrame:
        """Scale a picture of another size than the first one into its frame, with black bars."""
        if not self._resized:
            log.warning(
                "%s: the picture size changes from %d x %d to %d x %d; pictures are scaled to the first size",
                self.target, *self._size, picture.width, picture.height,
            )  # fmt: skip
            self._resized = True
        width, height = self._size
        scale = min(width / picture.width, height / picture.height)
        inner = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        canvas = np.zeros((height, width, 3), np.uint8)
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(
            to_bgr(picture), inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        return from_bgr(canvas)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn failures inside into one error and remove the temporary file; Ctrl-C passes through."""
        try:
            yield
        except (load_av().FFmpegError, OSError, ValueError, YolactError) as error:
            with contextlib.suppress(Exception):
                self._stack.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, YolactError):
                raise
            raise YolactError(f"cannot write {self.target}: {reason(error)}") from error
