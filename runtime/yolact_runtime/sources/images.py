"""Image files, folders and patterns, and reading images."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from yolact_runtime.errors import UsageError, YolactError, without_secrets
from yolact_runtime.frames import Frame, Source
from yolact_runtime.sources.folders import (
    IMAGES,
    OTHER_IMAGES,
    VIDEOS,
    OnError,
    images_in,
    is_pattern,
    match,
    raise_error,
    scan,
    suffix_of,
)
from yolact_runtime.sources.headers import read_header, size_fault
from yolact_runtime.sources.heif import HeifImage, heif_kind
from yolact_runtime.sources.structure import examine
from yolact_runtime.untrusted import read_bytes

log = logging.getLogger(__name__)

_LARGE = 256 << 20  # bytes
_large = threading.Lock()
# A GIF of one pixel.
_GIF = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


def _forget_turns() -> None:
    """A process that was forked meanwhile has no thread that would release the lock."""
    global _large
    _large = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_turns)


def list_images(sources: Iterable[str | Path]) -> list[Path]:
    """The images that `sources` name, in this order, each once.

    Args:
        sources: Files (with any suffix), folders (their images by name, without subfolders)
            and patterns such as `photos/*.jpg` or `photos/**/*.png`.

    Raises:
        UsageError: a source names no image.
        YolactError: a folder cannot be read.
    """
    return [Path(name) for name in each_once([expand(str(source)) for source in sources])]


def each_once(groups: Sequence[list[str]]) -> list[str]:
    """The paths of all groups, each once, as text: Path objects take five times the memory."""
    if len(groups) == 1 and len({os.path.split(name)[0] for name in groups[0]}) == 1:
        return groups[0]  # of one folder
    found: dict[str, str] = {}
    # Links to folders are resolved, so that a file under two names counts once; a link to a file counts as
    # an image of its own.
    folder = functools.lru_cache(maxsize=1024)(os.path.realpath)
    for group in groups:
        for name in group:
            head, tail = os.path.split(name)
            found.setdefault(f"{folder(head)}/{tail}", name)
    return list(found.values())


def expand(source: str, onerror: OnError = raise_error) -> list[str]:
    """The images of one file, folder or pattern, sorted by name.

    Args:
        source: File (with any suffix), folder (without subfolders) or pattern.
        onerror: Called for each folder that cannot be read; the others are read.

    Raises:
        UsageError: it names no image.
        YolactError: whether it exists cannot be determined.
    """
    failed: list[str] = []

    def note(folder: str, error: YolactError) -> None:
        failed.append(folder)
        onerror(folder, error)

    if os.path.isdir(source):  # noqa: PTH112 - raises no error
        names = scan(source, note)
    elif is_pattern(source):
        names = match(source, note)
    else:
        check_exists(source)
        return [str(Path(source))]
    return images_in(source, names, whole=not failed)


def check_exists(source: str) -> None:
    """Check that a path exists.

    Raises:
        UsageError: it does not, or is a link to nothing.
        YolactError: that cannot be determined: permission denied, name too long.
    """
    try:
        os.stat(source)  # noqa: PTH116 - Path drops a slash at the end, which only folders may have
    except OSError as error:
        source = without_secrets(source)  # an address whose kind is not known
        if os.path.islink(source):  # noqa: PTH114 - raises no error
            raise UsageError(f"image {source} is a broken symbolic link") from error
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise YolactError(f"cannot read {source}: {error.strerror or error}") from error
        where = "" if Path(source).is_absolute() else f" (looked in {Path.cwd()})"
        if source.endswith(("/", os.sep)):
            raise UsageError(f"folder {source} does not exist{where}") from error
        what = "image" if suffix_of(source) in IMAGES else "file or folder"
        raise UsageError(f"{what} {source} does not exist{where}") from error


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


def silence_opencv() -> None:
    """Keep OpenCV's messages off standard error: the exceptions of `read_image` say what is wrong."""
    # OpenCV has `utils.logging` from 4.13 on, and had `setLogLevel` before.
    (getattr(cv2.utils, "logging", None) or cv2).setLogLevel(0)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as viewers show it.

    EXIF orientation is applied; grey, palette and CMYK images become colour; 16-bit values are scaled to
    8 bits; an alpha channel is dropped, and colours are those stored. Of an animated image or one with pages,
    the first is read, and a warning says so.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        YolactError: missing, empty, cut off, not an image, or larger than `$YOLACT_MAX_PIXELS`.
    """
    return decode_image(path, read_bytes(path, "image", "image_bytes"))


def decode_image(path: str | Path, data: bytes) -> np.ndarray:
    """`read_image` for the content of a file; messages and the warning call it `path`."""
    if not data:
        raise YolactError(f"image {path} is empty (0 bytes)")
    if kind := heif_kind(data):
        heif = HeifImage(path, data, kind)
        with _turn(_check_size(path, heif.size, len(data) + heif.memory)):
            image, more = heif.decode(), heif.more
    else:
        structure = examine(data)
        if structure.cut_off:
            raise YolactError(f"image {path} is cut off; copy it again")
        if structure.misread:
            raise YolactError(f"image {path} {structure.misread}")
        header = read_header(structure.data)
        if header is None:
            raise _not_an_image(path)
        _check_values(path, header.values)
        copies = 1 + (structure.data is not data)
        with _turn(_check_size(path, header[:2], copies * len(data) + header.memory)):
            image, more = _decode(path, structure.data), structure.more
            image = _turned(image, structure.orientation)
    if more:
        _warn_of_more(str(path))
    if image.dtype == np.uint16:
        return _to_bytes(image)
    _check_values(path, str(image.dtype))
    return image


def _check_size(path: str | Path, size: Sequence[int], memory: int) -> int:
    if fault := size_fault(size, memory):
        raise YolactError(f"image {path} {fault}")
    return memory


def _turn(memory: int) -> contextlib.AbstractContextManager[object]:
    """Lets one image that takes much memory be decoded at a time, and all others at once."""
    return _large if memory > _LARGE else contextlib.nullcontext()


def _check_values(path: str | Path, values: str) -> None:
    if values not in ("uint8", "uint16"):
        raise YolactError(f"image {path} has {values} values; convert it to 8 or 16 bits per channel")


def _decode(path: str | Path, data: bytes) -> np.ndarray:
    """Pixels of any depth, (H, W, 3) BGR."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    if data[8:12] == b"WEBP":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION  # OpenCV applies it from 4.13 on only
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise YolactError(f"image {path} cannot be decoded: {error.err}") from error
    if image is None:
        if data.startswith(b"GIF8") and cv2.imdecode(np.frombuffer(_GIF, np.uint8), flags) is None:
            raise YolactError(
                f"image {path} is a GIF, which OpenCV {cv2.__version__} does not read;"
                ' run: pip install "opencv-python-headless>=4.12"'
            )
        raise _not_an_image(path)
    return image


def _not_an_image(path: str | Path) -> YolactError:
    suffix = suffix_of(str(path))
    if suffix in VIDEOS:
        return YolactError(f"image {path} is a video by its suffix; a list may name images only")
    if suffix in OTHER_IMAGES:
        return YolactError(f"image {path} has a format that is not read; convert it to JPEG or PNG")
    return YolactError(f"image {path} is damaged or not an image")


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image as EXIF's `orientation` (1 to 8) says that it is to be shown."""
    if orientation >= 5:
        image = cv2.transpose(image)
    horizontal, vertical = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    if horizontal or vertical:
        image = cv2.flip(image, -1 if horizontal and vertical else int(horizontal))
    return image


def _to_bytes(image: np.ndarray) -> np.ndarray:
    """16-bit values scaled to 8 bits, rounded, in the memory of `image`: at the largest size it is 1.5 GB."""
    values = image.reshape(-1)
    scaled = values.view(np.uint8)[: values.size]
    for at in range(0, values.size, 1 << 16):
        block = values[at : at + (1 << 16)].astype(np.uint32)
        scaled[at : at + len(block)] = (block + 128) // 257
    return scaled.reshape(image.shape)


@functools.lru_cache(maxsize=10_000)
def _warn_of_more(path: str) -> None:
    """Warn once for each file."""
    log.warning("image %s is animated or has several pictures; only the first is read", path)
