"""The header of a JPEG 2000 codestream: size, components, and the memory of the decoder."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from yolact_runtime.sources.heif import boxes

_START = b"\xff\x4f\xff\x51"  # of a codestream, with the segment of its size
_TILE_PART, _CODING, _COMPONENT_CODING = 0xFF90, 0xFF52, 0xFF53
# Bytes that OpenJPEG takes for a tile, for a component of a tile, and for a code block or precinct.
_TILE, _TILE_COMPONENT, _BLOCK = 9_000, 1_500, 600
_MOST_SEGMENTS = 1_000_000


class Codestream:
    """What the header says.

    Args:
        data: A file, with or without the boxes of JP2.

    Raises:
        struct.error, IndexError, ValueError: it is cut off or damaged.

    Attributes:
        size: Width and height in pixels.
        bits: Of the deepest component.
        memory: Bytes that OpenJPEG takes to decode it.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        colours, start = 0, 0
        if not data.startswith(_START):
            start, colours = _find(data)
            if data[start : start + 4] != _START:
                raise ValueError("there is no codestream")
        right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, components = (
            struct.unpack_from(">8IH", data, start + 8)
        )
        self.size = width, height = right - left, bottom - top
        end = start + 42 + 3 * components
        self.bits = max((value & 127) + 1 for value in data[start + 42 : end : 3])
        if not (tile_width and tile_height):
            raise ValueError("a tile has no size")
        tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
        tile = min(width, tile_width) * min(height, tile_height)
        blocks = max((_blocks(data, at, whole) for at, whole in self._codings(end, components)), default=1.0)
        self.memory = (
            width * height * 4 * (components + colours)
            + tiles * (_TILE + components * _TILE_COMPONENT)
            + int(tile * components * (_BLOCK * blocks + (4 if tiles > 1 else 0)))
        )

    def _codings(self, at: int, components: int) -> Iterator[tuple[int, bool]]:
        """Where styles of coding begin, in the header of the file and of tiles, and if for all components."""
        data = self._data
        for _ in range(_MOST_SEGMENTS):
            if at + 4 > len(data):
                return
            marker, length = struct.unpack_from(">HH", data, at)
            if marker == _TILE_PART:
                size = struct.unpack_from(">I", data, at + 6)[0]
                inside, end = at + 12, at + size if size else len(data)
                while inside + 4 <= len(data) and data[inside] == 0xFF and data[inside + 1] != 0x93:
                    yield from self._coding(inside, components)
                    inside += 2 + max(2, int.from_bytes(data[inside + 2 : inside + 4], "big"))
                at = max(end, at + 12)
                continue
            if marker >> 8 != 0xFF or marker == 0xFFD9:
                return
            yield from self._coding(at, components)
            at += 2 + max(2, length)
        raise ValueError("too many segments")

    def _coding(self, at: int, components: int) -> Iterator[tuple[int, bool]]:
        marker = int.from_bytes(self._data[at : at + 2], "big")
        if marker == _CODING:
            yield at + 4, True
        elif marker == _COMPONENT_CODING:
            yield at + (5 if components < 257 else 6), False


def _find(data: bytes) -> tuple[int, int]:
    """Where the codestream of a JP2 file begins, and the number of colours that a palette gives it."""
    colours = 0
    for kind, start, end in boxes(data, 0, len(data)):
        if kind == b"jp2c":
            return start, colours
        if kind == b"jp2h":
            for inner, at, _ in boxes(data, start, min(end, len(data))):
                if inner == b"pclr":
                    colours = max(colours, data[at + 2])
    raise ValueError("there is no codestream")


def _blocks(data: bytes, at: int, whole: bool) -> float:
    """Code blocks and precincts for each pixel of a component, by a style of coding."""
    precincts = data[at] & 1
    at += 5 if whole else 1  # the order of packets, layers and colour transform come first
    levels, width, height = data[at], (data[at + 1] & 15) + 2, (data[at + 2] & 15) + 2
    if levels > 32:
        raise ValueError("too many resolutions")
    total = 0.0
    for level in range(levels + 1):
        across, down = 15, 15
        if precincts:
            across, down = data[at + 5 + level] & 15, data[at + 5 + level] >> 4
        half = level > 0  # its bands are half as wide as the resolution
        share = 4.0 ** (level - levels) * (0.75 if half else 1.0)
        across, down = max(0, across - half), max(0, down - half)
        total += share * (2.0 ** -(across + down) + 2.0 ** -(min(across, width) + min(down, height)))
    return total
