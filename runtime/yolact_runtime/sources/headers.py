"""Image sizes read from file headers, to refuse an image before it is decoded."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from yolact_runtime.sources.tiff import Tiff

# Start of frame in a JPEG: C0 to CF without C4 (tables), C8 (reserved) and CC (tables).
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
# Compressed data contains FF only as FF 00 or before a restart marker, D0 to D7.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# Width, height and the highest value, which bitmaps lack.
_GAP = rb"(?:\s+|#[^\n]*\n)+"
_PNM = re.compile(rb"P[1-6]%b(\d+)%b(\d+)(?:%b(\d+))?" % (_GAP, _GAP, _GAP))
# Start of a JPEG 2000 codestream, alone or in a box of a JP2 file, and of its size segment.
_JPEG_2000 = b"\xff\x4f\xff\x51"


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels according to the header of an image file; `data` may be its beginning.

    Returns None if the format is unknown or the header is damaged.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return struct.unpack_from(">II", data, 16)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return Tiff(data).size
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return struct.unpack_from("<HH", data, 6)
        if data[:2] == b"BM":
            os2 = data[14:18] == b"\x0c\0\0\0"  # the length of the older header, with sides of 16 bits
            width, height = struct.unpack_from("<HH" if os2 else "<ii", data, 18)
            return abs(width), abs(height)
        if data[4:12] == b"jP  \r\n\x87\n" or data.startswith(_JPEG_2000):
            right, bottom, left, top = struct.unpack_from(">4I", data, data.index(_JPEG_2000) + 8)
            return right - left, bottom - top
        if match := _PNM.match(data[:1000]):
            return int(match[1]), int(match[2])
    except (struct.error, IndexError, ValueError):
        pass
    return None


def value_bytes(data: bytes) -> int:
    """Bytes that one value takes when it is decoded, according to the header; 1 if that is unknown."""
    bits = 8
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            bits = data[24]
        elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            bits = Tiff(data).bits
        elif data[4:12] == b"jP  \r\n\x87\n" or data.startswith(_JPEG_2000):
            bits = (data[data.index(_JPEG_2000) + 42] & 127) + 1
        elif match := _PNM.match(data[:1000]):
            bits = 1 if data[1:2] in b"14" else int(match[3] or 1).bit_length()
    except (struct.error, IndexError, ValueError):
        pass
    return max(1, (bits + 7) // 8)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of a JPEG up to its end marker, each with the position after it.

    Segments are skipped by their length: a thumbnail in one of them has markers of its own. What follows the
    end, such as the video of a motion photo, is not looked at.
    """
    at = 2
    while match := _MARKER.search(data, at):
        at, marker = match.end(), data[match.end() - 1]
        yield marker, at
        if marker == END_OF_IMAGE:
            return
        if marker not in (0x01, 0xD8):  # these have no content
            at += max(2, int.from_bytes(data[at : at + 2], "big"))


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Width and height from the first start-of-frame segment."""
    for marker, at in jpeg_segments(data):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if marker == START_OF_SCAN:
            break
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    """Width and height from the first chunk: lossy, lossless or extended."""
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None
