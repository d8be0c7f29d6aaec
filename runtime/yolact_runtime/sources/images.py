"""From what a user names to images: files, folders, globs."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from yolact_runtime.errors import UsageError, YolactError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def list_images(sources: Iterable[str | Path]) -> list[Path]:
    """The images that `sources` name, in that order, each once.

    Args:
        sources: Files (taken whatever their suffix), folders (their images by name, without subfolders)
            and patterns such as `photos/*.jpg` or `photos/**/*.png`.

    Raises:
        UsageError: a source names no image.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        for path in _expand(source):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expand(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        images = [item for item in sorted(path.iterdir()) if _is_image(item)]
        if not images:
            raise UsageError(f"folder {source} holds no image; known suffixes are {', '.join(SUFFIXES)}")
        return images
    if path.exists():
        return [path]
    if glob.has_magic(str(source)):
        # Path.glob knows no absolute patterns.
        images = [Path(name) for name in sorted(glob.glob(str(source), recursive=True))]  # noqa: PTH207
        images = [item for item in images if _is_image(item)]
        if not images:
            raise UsageError(f"pattern {source} matches no image; known suffixes are {', '.join(SUFFIXES)}")
        return images
    raise UsageError(f"image {source} does not exist")


def _is_image(path: Path) -> bool:
    # macOS leaves "._name.jpg" files with no image in them on shared drives.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._") and path.is_file()


def read_image(path: str | Path) -> np.ndarray:
    """Read an image the way it is meant to be seen.

    EXIF orientation is applied; grey, palette and CMYK images become colour; 16-bit values are scaled to
    8 bits; an alpha channel is dropped.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        YolactError: not there, empty, cut off, or not an image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise YolactError(f"cannot read image {path}: {error.strerror or error}") from error
    if not data:
        raise YolactError(f"image {path} is empty (0 bytes)")
    if _is_cut_off(data):
        raise YolactError(f"image {path} is cut off; copy it again")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise YolactError(f"image {path} cannot be decoded: {error.err}") from error
    if image is None:
        raise YolactError(f"image {path} is damaged or not an image")
    if image.dtype == np.uint16:
        return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise YolactError(f"image {path} has {image.dtype} values; convert it to 8 or 16 bits per channel")
    return image


def _is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end: some decoders fill the rest with grey instead of failing."""
    if data.startswith(b"\xff\xd8"):
        # The search takes half a millisecond; nearly every whole file makes it needless.
        if data.endswith(b"\xff\xd9"):
            return False
        # Compressed data never holds these markers. The last scan is the image's, not its thumbnail's.
        return data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0
    return data.startswith(b"\x89PNG") and b"IEND" not in data
