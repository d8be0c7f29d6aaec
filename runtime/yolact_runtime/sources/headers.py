"""Image sizes read from file headers, to refuse an image before it is decoded."""

from __future__ import annotations

import os
import re
import struct

from yolact_runtime.errors import UsageError

_LIMIT_VARIABLE = "YOLACT_MAX_PIXELS"
_LIMIT = 250_000_000  # the largest phone cameras have 200 megapixels
# Start of frame in a JPEG: C0 to CF without C4 (tables), C8 (reserved) and CC (tables).
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def max_pixels() -> int:
    """Maximum number of pixels of an image: `$YOLACT_MAX_PIXELS`, else 250 million (750 MB when decoded).

    Raises:
        UsageError: the variable is not a positive whole number.
    """
    text = os.environ.get(_LIMIT_VARIABLE, "")
    if not text:
        return _LIMIT
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{_LIMIT_VARIABLE} is {text!r}; it must be a whole number of pixels, 1 or more")
    return int(text)


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
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(data)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return struct.unpack_from("<HH", data, 6)
        if data[:2] == b"BM":
            os2 = data[14:18] == b"\x0c\0\0\0"  # the length of the older header, with sides of 16 bits
            width, height = struct.unpack_from("<HH" if os2 else "<ii", data, 18)
            return abs(width), abs(height)
        if match := re.match(rb"P[1-6](?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)", data[:1000]):
            return int(match[1]), int(match[2])
    except (struct.error, IndexError):
        pass
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Width and height from the first start-of-frame segment."""
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker == 0xFF:  # padding
            at += 1
        elif marker in (0x01, *range(0xD0, 0xD8)):  # no content
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
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


def _tiff(data: bytes) -> tuple[int, int] | None:
    order = "<" if data[:2] == b"II" else ">"
    directory = struct.unpack_from(order + "I", data, 4)[0]
    sizes = {}
    for index in range(struct.unpack_from(order + "H", data, directory)[0]):
        entry = directory + 2 + 12 * index
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in (256, 257):  # width, height; as 16 or 32 bits
            sizes[tag] = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)[0]
    return (sizes[256], sizes[257]) if len(sizes) == 2 else None
