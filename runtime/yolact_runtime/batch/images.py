"""The image that a row names."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.engines.base import check_image
from yolact_runtime.errors import YolactError
from yolact_runtime.frames import Frame, Source
from yolact_runtime.sources.images import decode_image, read_image
from yolact_runtime.untrusted import beyond, limit


class RowSource(Source):
    """The images of rows.

    Args:
        rows: Each has "path", "bytes" or "image"; "path" may be there besides the others, as a name, and
            "error" if there is no image.

    Attributes:
        paths: Of each row; None if it has none that is a text.
        read: The rows whose image was read.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.total = len(rows)
        self.paths = [_path(plain(row.get("path"))) for row in rows]
        self.read: set[int] = set()
        self._rows = rows

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            name = f"row {index}" if path is None else path
            yield Frame(index, name, Path(name), functools.partial(self._read, index, name))

    def _read(self, index: int, name: str) -> np.ndarray:
        image = image_of(self._rows[index], name)
        check_image(index, image)
        self.read.add(index)
        return image


def image_of(row: Mapping[str, Any], name: str) -> np.ndarray:
    """The image of a row, (H, W, 3) uint8 BGR if it has an encoded one.

    Args:
        row: As for `RowSource`.
        name: The path; without one, what messages call the image.

    Raises:
        YolactError: the row has none or two, or what it has cannot be read.
    """
    if (error := plain(row.get("error"))) is not None:
        raise YolactError(str(error))
    image, data, path = (plain(row.get(kind)) for kind in ("image", "bytes", "path"))
    if path is not None and _path(path) is None:
        raise YolactError(f"{name}: path is a {type(path).__name__}; a text is needed")
    if image is not None and data is not None:
        raise YolactError(f'{name} has "bytes" and "image"; give one of them')
    if image is not None:
        # OpenCV takes no negative steps, as of an image turned from RGB to BGR.
        return np.ascontiguousarray(image) if isinstance(image, np.ndarray) and image.ndim else image
    if data is not None:
        return decode_image(name, _content(data, name))
    if path is None:
        raise YolactError(f'{name} has none of "path", "bytes" and "image"')
    return read_image(name)


def _content(data: Any, name: str) -> bytes:
    """The bytes of an encoded image."""
    try:
        view = memoryview(data)
    except TypeError:
        kind = type(data).__name__
        raise YolactError(f"{name}: bytes is a {kind}; the content of a file is needed") from None
    if view.nbytes > limit("image_bytes"):
        raise YolactError(f"image {name} has more bytes than {beyond('image_bytes')}")
    return data if type(data) is bytes else view.tobytes()


def _path(value: Any) -> str | None:
    """The text of a path; None for anything else."""
    return os.fsdecode(value) if isinstance(value, str | bytes | os.PathLike) else None


def plain(value: Any) -> Any:
    """A value without the wrapping of Arrow; None for what NumPy, pandas and Arrow have for a missing one."""
    if hasattr(value, "as_py"):
        if not value.is_valid:
            return None
        if hasattr(value, "as_buffer") and "binary" in str(value.type):
            return value.as_buffer()  # no copy
        value = value.to_numpy() if hasattr(value, "to_numpy") else value.as_py()
    if isinstance(value, float | np.floating) and value != value:  # NaN
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value
