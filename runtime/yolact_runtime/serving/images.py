"""The image of a request, in one of three forms, checked as one from a file is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.sources.images import decode_image
from yolact_runtime.untrusted import beyond, limit

# Names of the inputs, one for each form of an image.
FORMS = ("image", "array", "prepared")
# Goes with `prepared`.
SIZE = "size"
# How messages call an image: "image of the request is damaged".
_NAME = "of the request"


class Prepared(NamedTuple):
    """An image as a network takes it: (H, W, 3), and height and width of the original in pixels."""

    pixels: np.ndarray
    size: tuple[int, int]


def read_request(
    inputs: Mapping[str, np.ndarray], prepare: Callable[[np.ndarray], np.ndarray], metadata: Metadata
) -> Prepared:
    """The image of a request.

    Args:
        inputs: One of "image" (1, 1) of bytes: an encoded file; "array" (1, H, W, 3) uint8 BGR; "prepared"
            (1, H, W, 3) as `Engine.prepare` returns it, together with "size" (1, 2): height and width.
        prepare: `Engine.prepare`.
        metadata: Of the model.

    Raises:
        YolactError: the image cannot be read, or is beyond the limits.
        UsageError: there is no or more than one image, or a shape does not fit.
    """
    given = [name for name in FORMS if name in inputs]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise UsageError(f"a request has one of {', '.join(FORMS)}; this one has {found}")
    form = given[0]
    if (SIZE in inputs) != (form == "prepared"):
        raise UsageError("size is needed with prepared, and is for that alone")
    value = inputs[form]
    if value.ndim < 1 or len(value) != 1:
        number = len(value) if value.ndim else 0
        raise UsageError(
            f"{form} has {number} images; send a request for each: the server makes batches of them"
        )
    if form == "prepared":
        return Prepared(_checked_prepared(value[0], metadata), read_size(inputs[SIZE]))
    pixels = _decoded(value) if form == "image" else _checked_array(value[0])
    return Prepared(prepare(pixels), (pixels.shape[0], pixels.shape[1]))


def _decoded(value: np.ndarray) -> np.ndarray:
    data = value.reshape(-1)[0] if value.size == 1 else None
    if not isinstance(data, bytes):
        raise UsageError(f"image is {value.shape} {value.dtype}; (1, 1) of bytes is needed: the file")
    if len(data) > limit("image_bytes"):
        raise YolactError(f"image {_NAME} has more bytes than {beyond('image_bytes')}")
    return decode_image(_NAME, data)


def _checked_array(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise UsageError(f"array is {(1, *pixels.shape)} {pixels.dtype}; (1, H, W, 3) uint8 BGR is needed")
    _check_sides(pixels.shape[0], pixels.shape[1], "array")
    return pixels


def _checked_prepared(pixels: np.ndarray, metadata: Metadata) -> np.ndarray:
    """The input of the network, (H, W, 3), if it is one."""
    expected = (*metadata.input_shape, 3)
    if pixels.shape != expected or pixels.dtype != metadata.input_dtype:
        raise UsageError(
            f"prepared is {(1, *pixels.shape)} {pixels.dtype}; {(1, *expected)} {metadata.input_dtype} is"
            " needed: the image at the size of the network's input"
        )
    # NaN is outside, too: it reaches both extremes.
    if pixels.dtype.kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 255):
        raise UsageError("prepared has values outside 0..255")
    return pixels


def read_size(value: np.ndarray) -> tuple[int, int]:
    """Height and width from the input "size"; raises as `read_request`."""
    if value.size != 2 or value.dtype.kind not in "iu":
        raise UsageError(f"size is {value.shape} {value.dtype}; (1, 2) int32 is needed: height and width")
    height, width = value.reshape(-1).tolist()
    _check_sides(height, width, "size")
    return height, width


def _check_sides(height: int, width: int, what: str) -> None:
    says = f"{what} says that the image is {width} x {height} pixels"
    if min(height, width) < 1:
        raise UsageError(f"{says}; 1 or more each are needed")
    if max(height, width) > limit("side"):
        raise YolactError(f"{says}; a side may have {beyond('side')}")
    if height * width > limit("pixels"):
        raise YolactError(f"{says}, more than {beyond('pixels')}")
