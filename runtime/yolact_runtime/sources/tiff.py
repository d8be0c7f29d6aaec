"""The structure of TIFF files: their tags, how many pages they have, and what OpenCV misreads in them."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # the integer types
# Tags.
_KIND, _WIDTH, _HEIGHT, _BITS, _COLOURS, _ORIENTATION, _SAMPLES = 254, 256, 257, 258, 262, 274, 277
_STRIP_HEIGHT, _PLANES, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA_SAMPLES, _FORMAT = 278, 284, 322, 323, 338, 339
_EXTENTS = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles
_THUMBNAIL, _MASK = 1, 4  # bits of _KIND
_ASSOCIATED, _UNASSOCIATED = 1, 2  # values of _EXTRA_SAMPLES
_FORMATS = {2: "int", 3: "float"}  # values of _FORMAT
_LOG_LUV = 32845  # a value of _COLOURS
# Strips and tiles of a picture: each takes OpenCV 2 us, and 0.2 ms where colours are converted.
_MOST_BLOCKS, _MOST_CONVERTED = 500_000, 20_000
_MOST_CONVERTED_PIXELS = 100_000_000  # 8 s
_CONVERTED = (8, 9, 10)  # values of _COLOURS: kinds of Lab
_MOST_FIELDS = 4096  # of a page; libtiff's limit
_MOST_VALUES = 1 << 16  # of a tag that is read as a list


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
        self._next_at = 0  # where the number is that says where the next page is
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
    def values(self) -> str:
        """The type of the values that OpenCV decodes, such as `uint8` or `float32`."""
        if _LOG_LUV in self._values(_COLOURS):
            return "float32"
        kind = _FORMATS.get((self._values(_FORMAT) or [1])[0], "uint")
        return f"{kind}{next((bits for bits in (8, 16, 32) if self.bits <= bits), 64)}"

    @property
    def pixel_bytes(self) -> float:
        """Bytes of a pixel as it is stored."""
        return max(1, (self._values(_SAMPLES) or [1])[0]) * self.bits / 8

    @property
    def block_pixels(self) -> int:
        """Pixels of a strip or tile; a tile may be larger than the picture."""
        return self._block[0] * self._block[1]

    @property
    def _block(self) -> tuple[int, int]:
        """Width and height of a strip or tile."""
        width, height = self.size or (0, 0)
        if tile := self._values(_TILE_WIDTH):
            return tile[0] or width, (self._values(_TILE_HEIGHT) or [0])[0] or height
        return width, min(height, (self._values(_STRIP_HEIGHT) or [0])[0] or height)

    @property
    def orientation(self) -> int:
        """EXIF's orientation, 1 to 8."""
        value = (self._values(_ORIENTATION) or [1])[0]
        return value if 1 <= value <= 8 else 1

    @property
    def is_cut_off(self) -> bool:
        """Whether a strip or tile lies past the end of the file; OpenCV fills some of them with zeros."""
        for starts, lengths in _EXTENTS:
            offsets, counts = self._array(starts), self._array(lengths)
            number = min(len(offsets), len(counts))
            if np.any(offsets[:number] + counts[:number] > float(len(self._data))):
                return True
        return False

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
        width, height = self.size or (0, 0)
        across, down = self._block
        most = _MOST_CONVERTED if set(_CONVERTED) & set(self._values(_COLOURS)) else _MOST_BLOCKS
        if across and down and -(-width // across) * -(-height // down) > most:
            return f"has more than {most:,} strips or tiles; save it with larger ones"
        if most == _MOST_CONVERTED and width * height > _MOST_CONVERTED_PIXELS:
            return f"has more than {_MOST_CONVERTED_PIXELS:,} pixels in Lab colours; save it in RGB"
        return ""

    def first_page(self) -> bytes:
        """The file with one page, of which libtiff returns the colours as they are stored.

        libtiff multiplies colours by an alpha channel that is not associated with them, and leaves them as
        they are if the file says that it is. OpenCV would visit all pages, to count them.
        """
        kinds = self._values(_EXTRA_SAMPLES)
        if _UNASSOCIATED not in kinds and not self._next:
            return self._data
        data = bytearray(self._data)
        if _UNASSOCIATED in kinds:
            field = self._fields[_EXTRA_SAMPLES]
            kinds = [_ASSOCIATED if kind == _UNASSOCIATED else kind for kind in kinds]
            struct.pack_into(f"{self._order}{field.length}{field.code}", data, field.at, *kinds)
        if self._next:
            struct.pack_into(self._order + ("Q" if self._big else "I"), data, self._next_at, 0)
        return bytes(data)

    def _directory(self, at: int) -> tuple[dict[int, Field], int]:
        """The integer fields of the page whose directory is at `at`, and where the next page's is, or 0."""
        word, entry, inline = ("Q", 20, 8) if self._big else ("I", 12, 4)
        number = self._unpack("Q" if self._big else "H", at)
        at += 8 if self._big else 2
        if at + number * entry > len(self._data):
            raise IndexError("the directory is cut off")
        if number > _MOST_FIELDS:
            raise IndexError("the directory is damaged")
        fields: dict[int, Field] = {}
        for place in range(at, at + number * entry, entry):
            tag, kind = struct.unpack_from(self._order + "HH", self._data, place)
            if (code := _CODES.get(kind)) is None:
                continue
            count = self._unpack(word, place + 4)
            values = place + 4 + inline
            if count * struct.calcsize("=" + code) > inline:
                values = self._unpack(word, values)
            fields.setdefault(tag, Field(code, count, values))  # libtiff ignores the others
        end = at + number * entry
        self._next_at = self._next_at or end
        return fields, self._unpack(word, end) if end + inline <= len(self._data) else 0

    def _values(self, tag: int, fields: dict[int, Field] | None = None) -> list[int]:
        """The values of a tag, the first ones if they are very many; none if it is missing."""
        if (field := (self._fields if fields is None else fields).get(tag)) is None:
            return []
        if field.at > len(self._data):
            raise IndexError("the values are cut off")
        number = min(field.length, _MOST_VALUES)
        return list(struct.unpack_from(f"{self._order}{number}{field.code}", self._data, field.at))

    def _array(self, tag: int) -> np.ndarray:
        """The values of a tag as float64 (N): whole numbers of 64 bits overflow when they are added."""
        if (field := self._fields.get(tag)) is None:
            return np.zeros(0)
        kind = np.dtype(self._order + field.code)
        if field.at + field.length * kind.itemsize > len(self._data):
            raise IndexError("the values are cut off")
        number = min(field.length, 4 * _MOST_BLOCKS)
        return np.frombuffer(self._data, kind, number, field.at).astype(np.float64)

    def _unpack(self, code: str, at: int) -> int:
        if at > len(self._data):
            raise IndexError("the number is cut off")
        value: int = struct.unpack_from(self._order + code, self._data, at)[0]
        return value
