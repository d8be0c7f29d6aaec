"""Helpers for reading and writing video with FFmpeg's libraries (PyAV)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.packages import imports_failed

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# 8K video has 33 million; a header that claims twice as many is damaged or hostile.
MAX_PIXELS = 1 << 26
BGR = "bgr24"
FULL, LIMITED = 2, 1  # AVCOL_RANGE_JPEG, AVCOL_RANGE_MPEG
BT709, BT601, SMPTE240M, BT2020 = 1, 5, 7, 9  # SWS_CS_*
# AVCOL_SPC_* as a frame names them, and what swscale calls the same coefficients.
_MATRICES = {1: BT709, 4: 4, 5: BT601, 6: BT601, 7: SMPTE240M, 9: BT2020, 10: BT2020}
_MATRIX_NAMES = {BT709: "bt709", 4: "fcc", BT601: "bt601", SMPTE240M: "smpte240m", BT2020: "bt2020"}
# Bilinear chroma and exact rounding: 1 ms more for 1280 x 720 than the default, which is 1 level too dark.
_SCALING = 0x2 | 0x40000
# Formats that name other files and addresses, or devices: playlists, descriptions of sessions, patterns.
_REFERRING = {
    *("concat", "dash", "hls", "image2", "rtp", "rtsp", "sap", "sdp", "vobsub", "webm_dash_manifest"),
    *("alsa", "fbdev", "kmsgrab", "lavfi", "oss", "video4linux2,v4l2", "x11grab"),
}
_local = threading.local()


@functools.cache
def _self_contained() -> str:
    """The names of the formats that refer to nothing else, for FFmpeg."""
    return ",".join(sorted(load_av().formats_available - _REFERRING))


def load_av() -> ModuleType:
    """PyAV, or the error that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise imports_failed(error, "video") from error
    return av


def reason(error: Exception) -> str:
    """The message of a PyAV or system error on one line, without the address that it may repeat."""
    return getattr(error, "strerror", None) or first_line(error)


def open_video(path: Path) -> InputContainer:
    """Open a video file for reading.

    Raises:
        YolactError: missing, empty, damaged, or not a media file.
    """
    av = load_av()
    if path.is_dir():
        raise YolactError(f"video {path} is a folder")
    try:
        if path.stat().st_size == 0:
            raise YolactError(f"video {path} is empty (0 bytes)")
        options = {"protocol_whitelist": "file", "format_whitelist": _self_contained()}
        return av.open(f"file:{path}", container_options=options, metadata_errors="replace")
    except av.error.ArgumentError as error:  # not on the list
        raise YolactError(f"video {path} has a format that is not read, such as a playlist") from error
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise YolactError(f"video {path} is damaged, cut off or not a video; copy it again") from error
    except (OSError, ValueError, av.FFmpegError) as error:
        raise YolactError(f"cannot read video {path}: {reason(error)}") from error


def all_moving_pictures(container: InputContainer) -> list[VideoStream]:
    """The video streams that are not cover art."""
    attached = load_av().stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & attached]


def moving_pictures(container: InputContainer) -> VideoStream | None:
    """The first video stream that is not cover art; None if there is none."""
    return next(iter(all_moving_pictures(container)), None)


def demux(container: InputContainer, *streams: Stream) -> Iterator[Packet]:
    """The packets of streams, with an empty one of each at the end, which flushes its decoder."""
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets, None)
        except IndexError:
            # At the end, PyAV also flushes streams that began within the file, which it does not know.
            return
        if packet is None:
            return
        yield packet


def start_of(stream: Stream) -> float | None:
    """The start of a stream in seconds of its time stamps; None if the header does not say."""
    if stream.start_time is None or stream.time_base is None:
        return None
    return float(stream.start_time * stream.time_base)


def period_of(stream: VideoStream) -> float:
    """Seconds from one frame to the next according to the stream, 0.001 to 10."""
    rate = stream.average_rate or stream.guessed_rate
    return min(max(float(1 / rate), 1e-3), 10.0) if rate and rate > 0 else 1 / 25


def usual_matrix(width: int, height: int) -> int:
    """The YUV matrix of untagged video: BT.709 from 1280 columns or 577 rows on, as players assume."""
    return BT709 if max(width, height) >= 1280 or min(width, height) > 576 else BT601


def to_bgr(frame: VideoFrame) -> np.ndarray:
    """A frame of any pixel format as (H, W, 3) uint8 BGR of full range, by its own matrix and range."""
    matrix = _MATRICES.get(int(frame.colorspace)) or usual_matrix(frame.width, frame.height)
    limited = frame.color_range == LIMITED or (
        frame.color_range != FULL
        and not frame.format.is_rgb
        and not frame.format.name.startswith(("yuvj", "gray"))
    )
    if _has_field_chroma(frame):
        return _fields_to_bgr(frame, matrix, limited)
    picture = _reformatter().reformat(
        frame,
        format=BGR,
        src_colorspace=matrix,
        src_color_range=LIMITED if limited else FULL,
        dst_color_range=FULL,
        interpolation=_SCALING,
    )
    return picture.to_ndarray()


def _has_field_chroma(frame: VideoFrame) -> bool:
    """Whether each field has its own rows of chroma: interlaced 4:2:0."""
    parts = frame.format.components
    return (
        frame.interlaced_frame
        and len(parts) > 2
        and parts[1].height < parts[0].height
        and frame.height % 4 == 0
    )


def _fields_to_bgr(frame: VideoFrame, matrix: int, limited: bool) -> np.ndarray:
    """As `to_bgr`, with the chroma of each field: PyAV's reformatter would mix the colours of both."""
    key = (frame.width, frame.height, frame.format.name, matrix, limited)
    known, graph = getattr(_local, "fields", (None, None))
    if graph is None or known != key:
        from av.filter import Graph

        graph = Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        scale = graph.add(
            "scale",
            f"interl=1:flags=bilinear+accurate_rnd:in_color_matrix={_MATRIX_NAMES[matrix]}"
            f":in_range={'limited' if limited else 'full'}:out_range=full",
        )
        graph.link_nodes(source, scale, graph.add("format", f"pix_fmts={BGR}"), graph.add("buffersink"))
        graph.configure()
        _local.fields = key, graph
    graph.push(frame)
    return graph.pull().to_ndarray()


def from_bgr(image: np.ndarray) -> VideoFrame:
    """(H, W, 3) uint8 BGR as a yuv420p frame of limited range, tagged with its matrix.

    An odd width or height is made even by repeating the last column or row.
    """
    av = load_av()
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    matrix = usual_matrix(width, height)
    source = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=BGR)
    frame = _reformatter().reformat(
        source,
        format="yuv420p",
        src_color_range=FULL,
        dst_colorspace=matrix,
        dst_color_range=LIMITED,
        interpolation=_SCALING,
    )
    frame.colorspace, frame.color_range = matrix, LIMITED
    return frame


def _reformatter():  # type: ignore[no-untyped-def]
    # It caches its tables between frames and is not thread-safe.
    if not hasattr(_local, "reformatter"):
        from av.video.reformatter import VideoReformatter

        _local.reformatter = VideoReformatter()
    return _local.reformatter
