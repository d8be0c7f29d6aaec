"""Where image files end by their structure, whether more pictures follow the first, and how to decode it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from yolact_runtime.sources.headers import END_OF_IMAGE, START_OF_SCAN, jpeg_segments
from yolact_runtime.sources.tiff import Tiff
from yolact_runtime.untrusted import limit

# A progressive JPEG takes a pass over all its pixels for each channel of a scan, 0.4 s for 250 million.
# Encoders write 10 to 24 of them.
_PASSES, _MOST_SCANS = 40, 1000
# What the picture of a PNG is made of, and small chunks that do no harm.
_PNG_KEPT = {
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"),
    *(b"bKGD", b"cHRM", b"cICP", b"gAMA", b"iCCP", b"pHYs", b"sBIT", b"sRGB", b"tIME"),
}
_RAW_EXIF = (
    b"Raw profile type exif",
    b"Raw profile type APP1",
)  # orientation in text, as ImageMagick writes it
_MOST_CHUNKS = 1_000_000
_MOST_GIF_BLOCKS = 20_000_000


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
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _gif(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            tiff = Tiff(data)
            return Structure(tiff.first_page(), tiff.is_cut_off, tiff.has_pages, misread=tiff.misread)
    except (struct.error, IndexError):
        return Structure(data, cut_off=True)
    except ValueError as error:
        return Structure(data, misread=str(error))
    return Structure(data)


def _jpeg(data: bytes) -> Structure:
    """Segments and scans up to the end marker."""
    channels, pixels, scans, passes = 0, 0, 0, 0
    for marker, at in jpeg_segments(data):
        if marker == END_OF_IMAGE:
            return Structure(data)
        if marker == START_OF_SCAN:
            scans, passes = scans + 1, passes + data[at + 2]
            if data[at + 2] == channels and len(data) > at + 8 + 2 * channels and data.endswith(b"\xff\xd9"):
                # The usual file: one scan has all channels. A marker at the end of the file ends that scan,
                # or comes after its end. Searching the scan takes 60 us.
                return Structure(data)
            if scans > _MOST_SCANS or passes * pixels > _PASSES * limit("pixels"):
                return Structure(
                    data, misread=f"has {scans} or more scans, too many for its size; save it again"
                )
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = struct.unpack_from(">HH", data, at + 3)
            pixels = pixels or height * width
            if marker in (0xC0, 0xC1):  # baseline or extended: not progressive
                channels = data[at + 7]
    return Structure(data, cut_off=True)


def _png(data: bytes) -> Structure:
    """Chunks up to IEND, each of a length, a type, the content and a checksum.

    Only those that the picture is made of are decoded: no other pictures of an animation, and no text, which
    may be compressed a thousandfold.
    """
    at, more, headers = 8, False, 0
    kept = [[0, 8]]  # stretches of the file
    for _ in range(_MOST_CHUNKS):
        if at + 12 > len(data):
            return Structure(data, cut_off=True, more=more)
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind == b"acTL":  # APNG
            more = struct.unpack_from(">I", data, at + 8)[0] > 1
        elif kind in _PNG_KEPT or data[at + 8 : at + 40].startswith(_RAW_EXIF):
            headers += kind == b"IHDR"
            if kept[-1][1] == at:
                kept[-1][1] = end
            else:
                kept.append([at, end])
        at = end
        if kind == b"IEND":
            if headers != 1:
                raise ValueError("is damaged: it has several headers")
            picture = data if len(kept) == 1 else b"".join(data[start:stop] for start, stop in kept)
            return Structure(picture, cut_off=at > len(data), more=more)
    raise ValueError(f"has more than {_MOST_CHUNKS:,} chunks; save it again")


def _gif(data: bytes) -> Structure:
    """Blocks up to the trailer. The first picture is decoded alone, and without its transparent colour."""
    pictures, control, first = 0, 0, 0
    at = 13 + _colours(data[10])
    blocks = 0
    while (block := data[at]) != 0x3B:  # trailer
        if block == 0x2C:  # image: its place, flags, colours, and the smallest code
            left, top, width, height = struct.unpack_from("<4H", data, at + 1)
            screen = struct.unpack_from("<HH", data, 6)
            if not pictures and (left + width > screen[0] or top + height > screen[1]):
                raise ValueError("is damaged: its first picture lies outside")
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
            blocks += 1
        if blocks > _MOST_GIF_BLOCKS:
            raise ValueError("has too many blocks; save it again")
        at += 1
        first = first or (at if pictures else 0)
    if control and data[control] & 1:
        # Decoders give transparent pixels the background's colour instead of the stored one.
        data = data[:control] + bytes([data[control] & 0xFE]) + data[control + 1 :]
    return Structure(data[:first] + b";" if pictures > 1 else data, more=pictures > 1)


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
    for _ in range(_MOST_CHUNKS):
        if at + 8 > end:
            return replace(found, more=pictures > 1)
        kind, length = struct.unpack_from("<4sI", data, at)
        after = at + 8 + length + length % 2
        content = data[at + 8 : at + 8 + length] if kind in (b"EXIF", b"ANMF") and not pictures else b""
        if kind == b"EXIF":
            found = replace(found, orientation=_exif_orientation(content))
        elif kind == b"ANMF":
            pictures += 1
            if pictures == 1:
                whole = content[:12] == bytes(6) + data[24:30]  # it covers the whole canvas
                found = replace(found, data=(whole and _webp_frame(content)) or _riff(data[12:after]))
        at = after
    raise ValueError(f"has more than {_MOST_CHUNKS:,} chunks; save it again")


def _webp_frame(content: bytes) -> bytes:
    """A file of one frame of an animation, without its alpha: OpenCV before 4.11 reads no animations."""
    at = 16
    while at + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, at)
        if kind in (b"VP8 ", b"VP8L"):
            return _riff(content[at : at + 8 + length + length % 2])
        at += 8 + length + length % 2
    return b""


def _riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _exif_orientation(exif: bytes) -> int:
    """The orientation of an EXIF block; 1, upright, if it is damaged."""
    try:
        return Tiff(exif.removeprefix(b"Exif\0\0")).orientation
    except (struct.error, IndexError):
        return 1
