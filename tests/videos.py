"""Small videos made by PyAV, and what PyAV alone reads in them: `import videos` works from every test."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH = 48, 64
SOUND_RATE = 48000
_EXACT = 0x40002  # bilinear and exact rounding; otherwise grey becomes a little green


def shades(count: int, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """Grey images, each a little lighter."""
    return [np.full((height, width, 3), 16 + 10 * (i % 22), np.uint8) for i in range(count)]


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Colours that tell every corner and side from the others."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (200, 40, 40)
    image[: height // 2, width // 2 :] = (40, 200, 40)
    image[height // 2 :, : width // 2] = (40, 40, 200)
    image[height // 2 :, width // 2 :] = (220, 220, 220)
    return image


def write(
    target: Path | io.BytesIO,
    images: Sequence[np.ndarray],
    times: Sequence[float] | None = None,
    *,
    rate: int = 10,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    key: int = 10,
    sound: str | None = None,
    sound_from: float = 0.0,
    tags: dict[str, str] | None = None,
    container: str | None = None,
    aspect: Fraction | None = None,
) -> Any:
    """Write images as a video, and return `target`.

    Args:
        target: The file, or memory.
        images: (H, W, 3) uint8 BGR each.
        times: Seconds; otherwise one after the other at `rate`.
        rate: Frames a second.
        codec: Of the pictures.
        pixels: Their pixel format.
        options: Of the encoder.
        key: Distance of key frames.
        sound: Codec of a tone beside them.
        sound_from: Where the tone starts, in seconds.
        tags: Metadata of the pictures' stream.
        container: Format, where the target does not tell.
        aspect: Shape of a pixel.
    """
    import av

    with av.open(target if isinstance(target, io.BytesIO) else str(target), "w", format=container) as output:
        if codec == "libx264" and options is None:
            options = {"crf": "4", "preset": "ultrafast"}
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        stream.gop_size = key
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        stream.metadata.update(tags or {})
        track = output.add_stream(sound, rate=SOUND_RATE, layout="mono") if sound else None
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "bgr24").reformat(format=pixels, interpolation=_EXACT)
            frame.pts = number if times is None else round(times[number] * 1000)
            frame.time_base = Fraction(1, rate if times is None else 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if track is not None:
            length = times[-1] if times is not None else len(images) / rate
            _tone(output, track, sound_from, length)
    return target


def _tone(output: Any, track: Any, start: float, length: float) -> None:
    import av

    whole = str(track.codec_context.name).startswith(("pcm", "adpcm"))
    for first in range(0, round(length * SOUND_RATE), 1024):
        wave = np.sin(np.arange(first, first + 1024) * 0.05)[None]
        samples = (wave * 30000).astype(np.int16) if whole else wave.astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, "s16" if whole else "fltp", "mono")
        frame.sample_rate, frame.time_base = SOUND_RATE, Fraction(1, SOUND_RATE)
        frame.pts = first + round(start * SOUND_RATE)
        output.mux(track.encode(frame))
    output.mux(track.encode(None))


def read(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Times and BGR images, by PyAV's own conversion."""
    import av

    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [frame.time for frame in frames], [frame.to_ndarray(format="bgr24") for frame in frames]


def sound(path: Path) -> tuple[list[float], list[bytes]]:
    """Times and contents of the packets of the first sound track."""
    import av

    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
        return [float(packet.pts * packet.time_base) for packet in packets], [bytes(p) for p in packets]


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write the four numbers of a rotation (a, b, c, d of the MP4 standard) into the header of an MP4."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    a, b, c, d = matrix
    one = 1 << 16
    data[place : place + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def damage(path: Path, packet: int) -> None:
    """Overwrite the packet with that number, in the order of the file, with zeros."""
    import av

    with av.open(str(path)) as container:
        packets = [(item.pos, item.size) for item in container.demux(video=0) if item.size]
    place, size = packets[packet]
    data = bytearray(path.read_bytes())
    data[place : place + size] = bytes(size)
    path.write_bytes(data)
