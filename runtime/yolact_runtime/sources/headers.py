"""What the header of an image file says: its kind and size, and the memory that decoding it takes."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from yolact_runtime.sources.jpeg2000 import Codestream
from yolact_runtime.sources.tiff import Tiff
from yolact_runtime.untrusted import LIMITS, beyond, limit

# Bytes that an image may take while it is decoded, for each pixel of the limit on pixels.
PIXEL_MEMORY = 8
# Start of frame in a JPEG: C0 to CF without C4 (tables), C8 (reserved) and CC (tables).
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Those whose scans are decoded at once; the others keep all coefficients.
_SEQUENTIAL = {0xC0, 0xC1, 0xC5, 0xC9, 0xCD}
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
# Compressed data contains FF only as FF 00 or before a restart marker, D0 to D7.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_MOST_SEGMENTS = 1_000_000
# Width, height and the highest value, which bitmaps lack. Exactly one space ends a number, as in OpenCV.
_GAP = rb"\s(?:\s|#[^\r\n]*[\r\n])*"
_PNM = re.compile(rb"P[1-6]%b(\d{1,10})(?:%b)(\d{1,10})(?:%b(\d{1,10}))?(?!\d)" % (_GAP, _GAP, _GAP))
_PAM_FIELD = re.compile(rb"(WIDTH|HEIGHT|MAXVAL)\s+(\d{1,10})")
_FLOAT = (b"#?RADIANCE", b"#?RGBE", b"\x76\x2f\x31\x01", b"PF", b"Pf")  # HDR, OpenEXR, PFM


class Header(NamedTuple):
    """What a header says.

    Attributes:
        width: Pixels, without EXIF's orientation.
        height: Pixels.
        values: The type of the decoded values, such as `uint8` or `float32`.
        memory: Bytes that decoding takes at its peak, without those of the file.
    """

    width: int
    height: int
    values: str = "uint8"
    memory: int = 0


def read_header(data: bytes) -> Header | None:
    """The header of an image file that OpenCV decodes; None if it is none of these, or its header is damaged.

    Where several numbers say how large the picture is, the largest counts.
    """
    for starts, read in _READERS:
        if data.startswith(starts):
            try:
                found = read(data)
            except (struct.error, IndexError, ValueError, ZeroDivisionError):
                return None
            return found if found and (min(found[:2]) > 0 or read is _float) else None
    return None


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels according to the header of an image file.

    Returns None if the format is unknown or the header is damaged.
    """
    found = read_header(data)
    return found[:2] if found and found.width else None


def size_fault(size: Sequence[int], memory: int) -> str:
    """Why an image is too large, for a message after its name; else empty.

    Args:
        size: Width and height.
        memory: Bytes that it takes while it is decoded.
    """
    says = f"says that it is {size[0]} x {size[1]} pixels"
    if size[0] * size[1] > limit("pixels"):
        return f"{says}, more than {beyond('pixels')}"
    if memory > (most := PIXEL_MEMORY * limit("pixels")):
        return (
            f"{says} of a kind that takes {memory / 1e6:,.1f} MB while it is decoded, more than the"
            f" {most / 1e6:,.1f} MB allowed ({LIMITS['pixels'].variable} sets another limit,"
            f" of {PIXEL_MEMORY} bytes for each pixel)"
        )
    return ""


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of a JPEG up to its end marker, each with the position after it.

    Segments are skipped by their length: a thumbnail in one of them has markers of its own. What follows the
    end, such as the video of a motion photo, is not looked at.

    Raises:
        ValueError: there are more than any real file has.
    """
    at = 2
    for _ in range(_MOST_SEGMENTS):
        if not (match := _MARKER.search(data, at)):
            return
        at, marker = match.end(), data[match.end() - 1]
        yield marker, at
        if marker == END_OF_IMAGE:
            return
        if marker not in (0x01, 0xD8):  # these have no content
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    raise ValueError("too many segments")


def _twice(width: int, height: int, deep: bool = False, while_decoding: float = 0) -> Header:
    """The header of an image that is decoded as it is: OpenCV's copy of the pixels, and NumPy's.

    Args:
        width: Pixels.
        height: Pixels.
        deep: Values have 16 bits.
        while_decoding: Bytes of each pixel that the decoder takes in addition to OpenCV's copy.
    """
    pixel = 6 if deep else 3
    memory = width * height * (pixel + max(pixel, while_decoding))
    return Header(width, height, "uint16" if deep else "uint8", int(memory))


def _jpeg(data: bytes) -> Header | None:
    """From the first start-of-frame segment, and the first scan."""
    frame: tuple[int, int] | None = None
    for marker, at in jpeg_segments(data):
        if marker in _FRAMES and not frame:
            frame = marker, at
        elif marker == START_OF_SCAN:
            break
    if not frame:
        return None
    kind, start = frame
    height, width, channels = struct.unpack_from(">HHB", data, start + 3)
    coefficients = 0.0
    if kind not in _SEQUENTIAL or (marker == START_OF_SCAN and data[at + 2] < channels):
        sampling = [(hv >> 4) * (hv & 15) for hv in data[start + 9 : start + 8 + 3 * channels : 3]]
        most = max(hv >> 4 for hv in data[start + 9 : start + 8 + 3 * channels : 3])
        most *= max(hv & 15 for hv in data[start + 9 : start + 8 + 3 * channels : 3])
        # Whole blocks of 16 bits each, in whole groups of at most 32 x 32 pixels.
        whole = -(-width // 32) * -(-height // 32) * 1024
        coefficients = 2 * sum(sampling) / most * whole / max(1, width * height)
    return _twice(width, height, while_decoding=coefficients)


def _png(data: bytes) -> Header | None:
    if data[12:16] != b"IHDR":
        return None
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    return _twice(width, height, bits > 8)


def _gif(data: bytes) -> Header:
    """From the screen; a picture that lies outside it is refused."""
    width, height = struct.unpack_from("<HH", data, 6)
    return _twice(width, height, while_decoding=6)


def _bmp(data: bytes) -> Header:
    os2 = data[14:18] == b"\x0c\0\0\0"  # the length of the older header, with sides of 16 bits
    width, height = struct.unpack_from("<HH" if os2 else "<ii", data, 18)
    return _twice(abs(width), abs(height), while_decoding=4)


def _webp(data: bytes) -> Header | None:
    """The largest of the canvas and what the first pictures say: lossy, lossless or extended."""
    if data[8:12] != b"WEBP":
        return None
    sizes, at = [], 12
    for _ in range(64):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        content = at + 8
        if kind == b"VP8X":
            sizes.append(_sides(data, content + 4))
        elif kind == b"ANMF":
            sizes.append(_sides(data, content + 6))
            at, length = content + 16 - 8, 0  # what is inside
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, content + 6)
            sizes.append((width & 0x3FFF, height & 0x3FFF))
        elif kind == b"VP8L":
            bits = struct.unpack_from("<I", data, content + 1)[0]
            sizes.append(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
        if kind in (b"VP8 ", b"VP8L") or content >= len(data):
            break
        at += 8 + length + length % 2
    if not sizes:
        return None
    return _twice(max(width for width, _ in sizes), max(height for _, height in sizes), while_decoding=6)


def _sides(data: bytes, at: int) -> tuple[int, int]:
    """Two numbers of three bytes, each one less than a side."""
    width, height = (int.from_bytes(data[place : place + 3], "little") for place in (at, at + 3))
    return width + 1, height + 1


def _tiff(data: bytes) -> Header | None:
    """From the first page, with the memory of a strip or tile, which may be larger than the picture."""
    tiff = Tiff(data)
    if not (size := tiff.size):
        return None
    values = tiff.values
    pixels = size[0] * size[1]
    each = int("".join(filter(str.isdigit, values))) // 8
    pixel = 3 * each
    # OpenCV holds a strip or tile as RGBA, and libtiff as it is stored.
    block = tiff.block_pixels * (4 + tiff.pixel_bytes) * each
    return Header(*size, values, pixels * pixel + max(pixels * pixel, int(block)))


def _jpeg_2000(data: bytes) -> Header:
    stream = Codestream(data)
    width, height = stream.size
    values = "uint8" if stream.bits <= 8 else "uint16" if stream.bits <= 16 else "float32"
    pixel = 6 if values == "uint16" else 3
    decoded = width * height * pixel
    return Header(width, height, values, decoded + max(decoded, stream.memory))


def _pnm(data: bytes) -> Header | None:
    if data.startswith(b"P7"):
        fields = dict.fromkeys((b"WIDTH", b"HEIGHT", b"MAXVAL"), 0)
        for name, number in _PAM_FIELD.findall(data[: data.find(b"ENDHDR", 0, 1 << 16)]):
            fields[name] = max(fields[name], int(number))
        return _twice(fields[b"WIDTH"], fields[b"HEIGHT"], fields[b"MAXVAL"] > 255, 16)
    if not (match := _PNM.match(data[: 1 << 16])):
        return None
    deep = data[1:2] not in b"14" and int(match[3] or 0) > 255
    return _twice(int(match[1]), int(match[2]), deep)


def _sun(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 4)
    return _twice(width, height, while_decoding=4)


def _float(data: bytes) -> Header:
    """These are not decoded, so their size does not matter."""
    return Header(0, 0, "float32")


_READERS: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes], Header | None]], ...] = (
    (b"\xff\xd8", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"RIFF", _webp),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff),
    ((b"GIF87a", b"GIF89a"), _gif),
    (b"BM", _bmp),
    ((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"), _jpeg_2000),
    (tuple(b"P%d" % number for number in range(1, 8)), _pnm),
    (b"\x59\xa6\x6a\x95", _sun),
    (_FLOAT, _float),
)
