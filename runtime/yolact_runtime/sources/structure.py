"""Where image files end by their structure, whether more pictures follow the first, and how to decode it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from yolact_runtime.sources.headers import END_OF_IMAGE, START_OF_SCAN, jpeg_segments
from yolact_runtime.sources.tiff import Tiff


@dataclass(frozen=True)
class Structure:
    """What a file says about itself without being decoded.

    Attributes:
        data: What to decode to get the first picture as it is stored: mostly the file itself.
        cut_off: The end of the picture is missing.
        more: More pictures follow: it is animated, or has pages.
        orientation: EXIF's orientation, where the decoder does not apply it.
        misread: Why OpenCV would show something else than the picture, for a message; else empty.
    """

    data: bytes
    cut_off: bool = False
    more: bool = False
    orientation: int = 1
    misread: str = ""


def examine(data: bytes) -> Structure:
    """The structure of an image file; one of an unknown format is taken to be whole."""
    try:
        if data.startswith(b"\xff\xd8"):
            return Structure(data, cut_off=not _ends_jpeg(data))
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _gif(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            tiff = Tiff(data)
            return Structure(
                tiff.without_premultiplying(), tiff.is_cut_off, tiff.has_pages, misread=tiff.misread
            )
    except (struct.error, IndexError):
        return Structure(data, cut_off=True)
    return Structure(data)


def _ends_jpeg(data: bytes) -> bool:
    """Whether a JPEG has its end marker, past all segments and scans."""
    channels = 0
    for marker, at in jpeg_segments(data):
        if marker == END_OF_IMAGE:
            return True
        if marker in (0xC0, 0xC1):  # start of frame, baseline or extended: not progressive
            channels = data[at + 7]
        if (
            marker == START_OF_SCAN
            and data[at + 2] == channels
            and len(data) > at + 8 + 2 * channels
            and data.endswith(b"\xff\xd9")
        ):
            # The usual file: one scan has all channels. A marker at the end of the file ends that scan, or
            # comes after its end. Searching the scan takes 60 us.
            return True
    return False


def _png(data: bytes) -> Structure:
    """Chunks up to IEND, each of a length, a type, the content and a checksum."""
    at, more = 8, False
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"acTL":  # APNG
            more = struct.unpack_from(">I", data, at + 8)[0] > 1
        at += 12 + length
        if kind == b"IEND":
            return Structure(data, cut_off=at > len(data), more=more)
    return Structure(data, cut_off=True, more=more)


def _gif(data: bytes) -> Structure:
    """Blocks up to the trailer. The first picture is decoded without its transparent colour."""
    pictures, control = 0, 0
    at = 13 + _colours(data[10])
    while (block := data[at]) != 0x3B:  # trailer
        if block == 0x2C:  # image: its place, flags, colours, and the smallest code
            pictures += 1
            at += 11 + _colours(data[at + 9])
        elif block == 0x21:  # extension
            if data[at + 1] == 0xF9 and not pictures:  # graphic control
                control = at + 3
            at += 2
        else:
            return Structure(data, cut_off=not pictures, more=pictures > 1)
        while length := data[at]:
            at += 1 + length
        at += 1
    if control and data[control] & 1:
        # Decoders give transparent pixels the background's colour instead of the stored one.
        data = data[:control] + bytes([data[control] & 0xFE]) + data[control + 1 :]
    return Structure(data, more=pictures > 1)


def _colours(flags: int) -> int:
    """Bytes of a GIF's colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(data: bytes) -> Structure:
    """Chunks of an extended file: EXIF, and the first picture of an animation."""
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    found = Structure(data, cut_off=len(data) < end)
    if found.cut_off or data[12:16] != b"VP8X":
        return found
    pictures, at = 0, 12
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        content = data[at + 8 : at + 8 + length] if kind in (b"EXIF", b"ANMF") else b""
        if kind == b"EXIF":
            found = replace(found, orientation=_exif_orientation(content))
        elif kind == b"ANMF":
            pictures += 1
            if pictures == 1 and content[:12] == bytes(6) + data[24:30]:  # covers the whole canvas
                found = replace(found, data=_webp_frame(content) or data)
        at += 8 + length + length % 2
    return replace(found, more=pictures > 1)


def _webp_frame(content: bytes) -> bytes:
    """A file of one frame of an animation, without its alpha: OpenCV before 4.11 reads no animations."""
    at = 16
    while at + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, at)
        if kind in (b"VP8 ", b"VP8L"):
            chunk = content[at : at + 8 + length + length % 2]
            return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
        at += 8 + length + length % 2
    return b""


def _exif_orientation(exif: bytes) -> int:
    """The orientation of an EXIF block; 1, upright, if it is damaged."""
    try:
        return Tiff(exif.removeprefix(b"Exif\0\0")).orientation
    except (struct.error, IndexError):
        return 1
