"""The structure of TIFF files: their tags, how many pages they have, and what OpenCV misreads in them."""

from __future__ import annotations

import struct
from typing import NamedTuple

_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # the integer types
# Tags.
_KIND, _WIDTH, _HEIGHT, _BITS, _ORIENTATION, _SAMPLES, _PLANES = 254, 256, 257, 258, 274, 277, 284
_EXTRA_SAMPLES = 338
_EXTENTS = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles
_THUMBNAIL, _MASK = 1, 4  # bits of _KIND
_ASSOCIATED, _UNASSOCIATED = 1, 2  # values of _EXTRA_SAMPLES


class Field(NamedTuple):
    """Where the values of a tag are in the file, and the `struct` format of one."""

    code: str
    length: int
    at: int


class Tiff:
    """The first page of a TIFF file, also of a BigTIFF.

    Args:
        data: The file, or an EXIF block without its marker.

    Raises:
        struct.error, IndexError: it is cut off or damaged.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._big = data[2:4] in (b"+\0", b"\0+")
        first = self._unpack("Q" if self._big else "I", 8 if self._big else 4)
        self._fields, self._next = self._directory(first)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels, without the orientation."""
        width, height = self._values(_WIDTH), self._values(_HEIGHT)
        return (width[0], height[0]) if width and height else None

    @property
    def bits(self) -> int:
        """Bits of a value."""
        return max(self._values(_BITS) or [1])

    @property
    def orientation(self) -> int:
        """EXIF's orientation, 1 to 8."""
        value = (self._values(_ORIENTATION) or [1])[0]
        return value if 1 <= value <= 8 else 1

    @property
    def is_cut_off(self) -> bool:
        """Whether a strip or tile lies past the end of the file; OpenCV fills some of them with zeros."""
        return any(
            offset + count > len(self._data)
            for offsets, counts in _EXTENTS
            for offset, count in zip(self._values(offsets), self._values(counts), strict=False)
        )

    @property
    def has_pages(self) -> bool:
        """Whether another page follows that is neither a smaller copy nor a mask."""
        at, seen = self._next, set[int]()
        # Each page is parsed, so a hostile chain of many pages must not be followed to its end.
        while at and at not in seen and len(seen) < 16:
            seen.add(at)
            try:
                fields, at = self._directory(at)
                kind = (self._values(_KIND, fields) or [0])[0]
            except (struct.error, IndexError):
                return False  # damage past the page that is read
            if not kind & (_THUMBNAIL | _MASK):
                return True
        return False

    @property
    def misread(self) -> str:
        """Why OpenCV would show something else than the picture, for a message; else empty."""
        if (self._values(_KIND) or [0])[0] & _THUMBNAIL:
            return "begins with a thumbnail, as camera raw files do; convert it to JPEG or PNG"
        samples = (self._values(_SAMPLES) or [1])[0]
        if (self._values(_PLANES) or [1])[0] == 2 and samples >= 3 and self.bits == 16:
            return "has separate planes of 16 bits, which OpenCV misreads; save it with interleaved channels"
        return ""

    def without_premultiplying(self) -> bytes:
        """The file as libtiff returns its colours as they are stored.

        libtiff multiplies colours by an alpha channel that is not associated with them, and leaves them as
        they are if the file says that it is.
        """
        if _UNASSOCIATED not in (kinds := self._values(_EXTRA_SAMPLES)):
            return self._data
        field = self._fields[_EXTRA_SAMPLES]
        kinds = [_ASSOCIATED if kind == _UNASSOCIATED else kind for kind in kinds]
        data = bytearray(self._data)
        struct.pack_into(f"{self._order}{field.length}{field.code}", data, field.at, *kinds)
        return bytes(data)

    def _directory(self, at: int) -> tuple[dict[int, Field], int]:
        """The integer fields of the page whose directory is at `at`, and where the next page's is, or 0."""
        word, entry, inline = ("Q", 20, 8) if self._big else ("I", 12, 4)
        number = self._unpack("Q" if self._big else "H", at)
        at += 8 if self._big else 2
        if at + number * entry > len(self._data):
            raise IndexError("the directory is cut off")
        fields = {}
        for place in range(at, at + number * entry, entry):
            tag, kind = struct.unpack_from(self._order + "HH", self._data, place)
            if (code := _CODES.get(kind)) is None:
                continue
            count = self._unpack(word, place + 4)
            values = place + 4 + inline
            if count * struct.calcsize("=" + code) > inline:
                values = self._unpack(word, values)
            fields[tag] = Field(code, count, values)
        end = at + number * entry
        return fields, self._unpack(word, end) if end + inline <= len(self._data) else 0

    def _values(self, tag: int, fields: dict[int, Field] | None = None) -> list[int]:
        """The values of a tag; none if it is missing."""
        if (field := (self._fields if fields is None else fields).get(tag)) is None:
            return []
        if field.at > len(self._data):
            raise IndexError("the values are cut off")
        return list(struct.unpack_from(f"{self._order}{field.length}{field.code}", self._data, field.at))

    def _unpack(self, code: str, at: int) -> int:
        if at > len(self._data):
            raise IndexError("the number is cut off")
        value: int = struct.unpack_from(self._order + code, self._data, at)[0]
        return value
