"""HEIC and AVIF: still pictures in the container of MP4 videos, read with pillow-heif and Pillow."""

from __future__ import annotations

import functools
import io
import struct
from typing import Any

import numpy as np

from yolact_runtime.errors import YolactError, first_line, missing_extra
from yolact_runtime.packages import imports_failed, installed
from yolact_runtime.sources.isobmff import boxes, is_cut_off

# Brands of pictures and of sequences of pictures, which hold a picture as well.
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"}
_AVIF = {b"avif", b"avis", b"avio"}
# How the libraries report damage; Pillow raises a SyntaxError for AVIF.
_ERRORS = (ValueError, RuntimeError, SyntaxError, OSError, EOFError, IndexError, struct.error)


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
        value_bytes: Bytes of a decoded value, 1 or 2.
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
        self.value_bytes = 2 if self._image.mode.endswith(";16") else 1

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
