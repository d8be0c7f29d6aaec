"""Image files, folders and patterns, and reading images."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.frames import Frame, Source
from yolact_runtime.sources.headers import image_size, max_pixels

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def list_images(sources: Iterable[str | Path]) -> list[Path]:
    """The images that `sources` name, in this order, each once.

    Args:
        sources: Files (with any suffix), folders (their images by name, without subfolders)
            and patterns such as `photos/*.jpg` or `photos/**/*.png`.

    Raises:
        UsageError: a source names no image.
    """
    return [Path(name) for name in list_names(sources)]


def list_names(sources: Iterable[str | Path]) -> list[str]:
    """Same as `list_images`, as text: a fifth of the memory, which matters for 100,000 images."""
    sources = list(sources)
    if len(sources) == 1 and Path(sources[0]).is_dir():
        return _expand(sources[0])
    found: dict[str, str] = {}
    # Links to folders are resolved, so that a file under two names counts once; a link to a file counts as
    # an image of its own.
    folder = functools.lru_cache(maxsize=1024)(os.path.realpath)
    for source in sources:
        for name in _expand(source):
            head, tail = os.path.split(name)
            found.setdefault(f"{folder(head)}/{tail}", name)
    return list(found.values())


class ImageSource(Source):
    """Image files.

    Args:
        paths: The files, in order.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.total = len(paths)
        self.paths = paths

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            yield image_frame(index, str(path))

    @property
    def folders(self) -> set[str]:
        """Real paths of the folders that hold the images."""
        return {os.path.realpath(head) for head in {os.path.split(path)[0] for path in self.paths}}


def image_frame(index: int, name: str) -> Frame:
    """The frame of an image file."""
    return Frame(index, name, Path(name), functools.partial(read_image, name))


def _expand(source: str | Path) -> list[str]:
    """The images of one file, folder or pattern, sorted by name."""
    path = Path(source)
    if path.is_dir():
        names = sorted(str(item) for item in path.iterdir() if _is_image(item))
        if not names:
            raise UsageError(f"folder {source} holds no image; known suffixes are {', '.join(SUFFIXES)}")
        return names
    if path.exists():
        return [str(path)]
    if glob.has_magic(str(source)):
        # Path.glob takes no absolute patterns.
        matches = map(Path, sorted(glob.glob(str(source), recursive=True)))  # noqa: PTH207
        names = [str(match) for match in matches if _is_image(match)]
        if not names:
            raise UsageError(f"pattern {source} matches no image; known suffixes are {', '.join(SUFFIXES)}")
        return names
    if path.is_symlink():
        raise UsageError(f"image {source} is a broken symbolic link")
    raise UsageError(f"image {source} does not exist")


def _is_image(item: Path) -> bool:
    # macOS writes "._name.jpg" files, which are not images, to shared drives.
    if item.suffix.lower() not in SUFFIXES or item.name.startswith("._"):
        return False
    if item.is_file():
        return True
    # A broken link was meant to be an image, so reading it reports the error; pipes and devices were not.
    return item.is_symlink() and not item.exists()


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as viewers show it.

    EXIF orientation is applied; grey, palette and CMYK images become colour; 16-bit values are scaled to
    8 bits; an alpha channel is dropped.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        YolactError: missing, empty, cut off, not an image, or larger than `$YOLACT_MAX_PIXELS`.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise YolactError(f"cannot read image {path}: {error.strerror or error}") from error
    if not data:
        raise YolactError(f"image {path} is empty (0 bytes)")
    if _is_cut_off(data):
        raise YolactError(f"image {path} is cut off; copy it again")
    size = image_size(data)
    if size is not None and size[0] * size[1] > (limit := max_pixels()):
        raise YolactError(
            f"image {path} says that it is {size[0]} x {size[1]} pixels, more than the {limit} allowed;"
            " shrink it, or set YOLACT_MAX_PIXELS higher"
        )
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
    """Whether the end of a JPEG or PNG is missing: some decoders fill it with grey instead of failing."""
    if data.startswith(b"\xff\xd8"):
        # Nearly every complete file ends here; the search below takes half a millisecond.
        if data.endswith(b"\xff\xd9"):
            return False
        # Compressed data never contains these markers. The last scan is the image, not a thumbnail.
        return data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0
    return data.startswith(b"\x89PNG") and b"IEND" not in data
