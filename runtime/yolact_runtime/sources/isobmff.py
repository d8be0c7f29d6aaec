"""Boxes of HEIC and AVIF files (ISO base media file format): whether all coded data is there."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_CODED = (b"hvc1", b"av01")  # the types of coded pictures and tiles
_ZEROS = bytes(32)


def boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start of the content, and end of each box between two positions; the last may end past `end`."""
    while at + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1:
            length, start = struct.unpack_from(">Q", data, start)[0], at + 16
        at += max(8, length or end - at)
        yield kind, start, at


def is_cut_off(data: bytes) -> bool:
    """Whether coded data of a picture or of one of its tiles is missing.

    It is missing past the end of the file, and where an interrupted copy has zeros. libheif leaves such tiles
    grey, or returns another picture of the file, without an error.

    Raises:
        struct.error, IndexError: the boxes are damaged.
    """
    top = {kind: (start, end) for kind, start, end in boxes(data, 0, len(data))}
    if b"meta" not in top:
        return False
    start, end = top[b"meta"]
    if end > len(data):
        return True
    inside = {kind: (start, end) for kind, start, end in boxes(data, start + 4, end)}
    if b"iinf" not in inside or b"iloc" not in inside:
        return False
    coded = _coded_items(data, *inside[b"iinf"])
    return any(
        stop > len(data) or (item in coded and data[max(begin, stop - 32) : stop] == _ZEROS)
        for item, begin, stop in _extents(data, inside[b"iloc"][0])
    )


def _coded_items(data: bytes, at: int, end: int) -> set[int]:
    """Ids of the items that are coded pictures, from the box `iinf`."""
    items = set()
    for kind, start, _ in boxes(data, at + (8 if data[at] else 6), end):
        if kind == b"infe" and data[start] >= 2:
            item, code = struct.unpack_from(">H2x4s" if data[start] == 2 else ">I2x4s", data, start + 4)
            if code in _CODED:
                items.add(item)
    return items


def _extents(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Item, start and end of the pieces of the file that the box `iloc` lists."""
    version = data[at]
    # Bytes of each number: 0, 4 or 8.
    offset_size, length_size, base_size = data[at + 4] >> 4, data[at + 4] & 15, data[at + 5] >> 4
    index_size = data[at + 5] & 15 if version else 0
    at += 6

    def number(size: int) -> int:
        nonlocal at
        if at + size > len(data):
            raise IndexError("the box is cut off")
        at += size
        return int.from_bytes(data[at - size : at], "big")

    for _ in range(number(4 if version == 2 else 2)):
        item = number(4 if version == 2 else 2)
        method = number(2) & 15 if version else 0
        number(2)  # of another file
        base = number(base_size)
        extents = number(2)
        # Extents of no bytes are all the same.
        for _ in range(extents if offset_size + length_size + index_size else min(extents, 1)):
            number(index_size)
            offset, length = base + number(offset_size), number(length_size)
            if method == 0:
                yield item, offset, offset + length if length else len(data)
