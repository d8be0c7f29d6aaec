"""HEIC and AVIF: still pictures in boxes (ISO base media file format), read with pillow-heif and Pillow."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from yolact_runtime.errors import YolactError, first_line, missing_extra
from yolact_runtime.packages import imports_failed, installed

# Brands of pictures and of sequences of pictures, which hold a picture as well.
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"}
_AVIF = {b"avif", b"avis", b"avio"}
_CODED = (b"hvc1", b"av01")  # the types of coded pictures and tiles
_ZEROS = bytes(32)
# Bytes of a pixel at the peak of decoding: planes, pixels, and the copies of the libraries.
_HEIC_PIXEL, _AVIF_PIXEL = 10, 20
# How the libraries report damage; Pillow raises a SyntaxError for AVIF.
_ERRORS = (
    *(ValueError, RuntimeError, SyntaxError, OSError, EOFError, LookupError, ArithmeticError, struct.error),
)


def heif_kind(data: bytes) -> str:
    """`HEIC` or `AVIF` according to the brands at the beginning of a file; else empty."""
    if data[4:8] != b"ftyp":
        return ""
    major, length = data[8:12], min(int.from_bytes(data[:4], "big"), len(data))
    if major in _AVIF:
        return "AVIF"
    if major not in _HEIC:
        return ""
    # MIAF's brands leave open how the picture is compressed.
    others = {data[at : at + 4] for at in range(16, length - 3, 4)}
    return "AVIF" if major in (b"mif1", b"mif2", b"msf1") and others & _AVIF else "HEIC"


def is_heif(path: str) -> bool:
    """Whether a file is HEIC or AVIF by its content; False if it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - called for every name
            return bool(heif_kind(file.read(256)))
    except OSError:
        return False


@functools.cache
def reads_heif(kind: str) -> bool:
    """Whether the libraries for `HEIC` or `AVIF` are installed; they are not imported."""
    # Pillow 11.3 is the first with a decoder for AVIF.
    return installed("PIL") and installed("pillow_heif" if kind == "HEIC" else "PIL._avif")


class HeifImage:
    """A HEIC or AVIF file whose header was read.

    Its pictures are turned as its own properties (`irot`, `imir`) say. EXIF's orientation, which repeats
    them in most files, has no effect, as the standard requires.

    Attributes:
        size: Width and height in pixels.
        memory: Bytes that decoding takes at its peak, without those of the file.
        more: More pictures follow the main one.
    """

    def __init__(self, path: object, data: bytes, kind: str) -> None:
        """Read the header of `data`, the content of the file `path`.

        Raises:
            YolactError: it is damaged, or the libraries are not installed.
        """
        if not reads_heif(kind):
            raise missing_extra(f"image {path} is {kind}, which", "heif")
        self._path, self._kind = path, kind
        self._image: Any
        try:
            top = {name for name, _, _ in boxes(data, 0, len(data))}
            if kind == "HEIC" and b"moov" in top and b"meta" not in top:
                raise YolactError(
                    f"image {path} is a sequence without a still picture; convert it to a video, such as .mp4"
                )
            if is_cut_off(data):
                raise YolactError(f"image {path} is cut off; copy it again")
            if kind == "HEIC":
                import pillow_heif

                self._image = pillow_heif.open_heif(
                    io.BytesIO(data), convert_hdr_to_8bit=False, bgr_mode=True
                )
                if not self._image.info.get("primary"):
                    raise ValueError("the main picture cannot be read")
                self.more = len(self._image) > 1 or b"moov" in top
            else:
                from PIL.AvifImagePlugin import AvifImageFile

                # `Image.open` has a limit of its own on the number of pixels.
                self._image = AvifImageFile(io.BytesIO(data))
                self.more = getattr(self._image, "n_frames", 1) > 1
        except ImportError as error:  # installed, but it does not load
            raise imports_failed(error, f"image {path}", "heif") from error
        except _ERRORS as error:
            raise self._damaged(error) from error
        self.size: tuple[int, int] = self._image.size
        pixel = _AVIF_PIXEL if kind == "AVIF" else _HEIC_PIXEL * (1 + self._image.mode.endswith(";16"))
        self.memory = self.size[0] * self.size[1] * pixel

    def decode(self) -> np.ndarray:
        """The picture, without its alpha channel.

        Returns:
            (H, W, 3) BGR, uint8 or uint16.

        Raises:
            YolactError: it is cut off or damaged.
        """
        try:
            if self._kind == "HEIC":
                pixels = np.asarray(self._image)
            else:
                from PIL import ImageOps

                pixels = np.asarray(ImageOps.exif_transpose(self._image).convert("RGB"))[..., ::-1]
        except _ERRORS as error:
            raise self._damaged(error) from error
        if pixels.ndim == 2 or pixels.shape[2] < 3:  # grey, or grey and alpha
            pixels = np.repeat(pixels.reshape(*pixels.shape[:2], -1)[..., :1], 3, axis=2)
        return np.array(pixels[..., :3], order="C")  # a copy: the library's own memory cannot be written to

    def _damaged(self, error: BaseException) -> YolactError:
        return YolactError(f"image {self._path} cannot be decoded as {self._kind}: {first_line(error)}")


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
