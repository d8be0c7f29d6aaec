"""The plan of `preprocess.cu`: images to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolact_runtime.cuda.plans.plan import Buffer, Launch, Plan, check_limits
from yolact_runtime.errors import UsageError
from yolact_runtime.metadata import InputSize, height_width

SOURCE = "preprocess.cu"
_TYPES = {
    np.dtype(np.uint8): "unsigned char",
    np.dtype(np.float32): "float",
    np.dtype(np.float16): "__half",
}
MAX_SIDE = 32768  # pixels, of an image and of the input
# Same as in the source.
_TILE = (32, 8, 1)


def preprocess_plan(
    batch: int,
    size: InputSize,
    capacity: int,
    dtype: np.typing.DTypeLike = np.uint8,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Plan:
    """The launch that resizes images, and normalises them unless the output is uint8.

    Inputs of the plan: `pixels` uint8 (capacity,) and `table` int64 (N, 3), which `pack` fills. Output:
    `images`, uint8 (N, H, W, 3) BGR like that of `yolact_runtime.preprocess.resize_batch`, or (x - mean) /
    std of it, (N, 3, H, W) RGB.

    Args:
        batch: N, number of images; 1..65535.
        size: Of the output in pixels: the side of a square, or (H, W); 1..32768.
        capacity: Bytes of all images of a batch, 3 per pixel.
        dtype: Of the output: uint8, float32 or float16.
        mean: Subtracted from the 0..255 values, in BGR order.
        std: Divides the difference, in BGR order.

    Raises:
        UsageError: a value is outside these limits.
    """
    rows, columns = height_width(size)
    check_limits(
        "the preprocessing kernel takes",
        {
            **{"batch": (batch, 65535), "height": (rows, MAX_SIDE), "width": (columns, MAX_SIDE)},
            "capacity": (capacity, 2**40),
        },
    )
    kind = np.dtype(dtype)
    if kind not in _TYPES:
        raise UsageError(f"the preprocessing kernel writes uint8, float32 or float16, not {kind}")
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise UsageError(
            f"the preprocessing kernel takes three means and three positive stds, not {mean} and {std}"
        )
    shape = (batch, rows, columns, 3) if kind == np.uint8 else (batch, 3, rows, columns)
    launch = Launch(
        SOURCE,
        f"resize<{_TYPES[kind]}>",
        (-(-columns // _TILE[0]), -(-rows // _TILE[1]), batch),
        _TILE,
        0,
        (
            *("pixels", "table", np.int32(rows), np.int32(columns)),
            *(*map(np.float32, mean), *map(np.float32, std), "images"),
        ),
    )
    inputs = (
        Buffer("pixels", (capacity,), np.dtype(np.uint8)),
        Buffer("table", (batch, 3), np.dtype(np.int64)),
    )
    return Plan(inputs, (Buffer("images", shape, kind),), (), (launch,))


def pack(images: Sequence[np.ndarray], pixels: np.ndarray, table: np.ndarray) -> None:
    """Copy images into the inputs of a plan.

    Args:
        images: 1 to N images (H, W, 3) uint8. Fewer than N are filled up with the last one.
        pixels: (capacity,) uint8, written.
        table: (N, 3) int64, written: offset in `pixels`, height and width of each image.

    Raises:
        UsageError: an image has another type or shape, or they are too many or too large.
    """
    if not 1 <= len(images) <= len(table):
        raise UsageError(
            f"the preprocessing kernel's plan is for 1 to {len(table)} images, not {len(images)}"
        )
    start = 0
    for row, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UsageError(
                f"the preprocessing kernel takes images of uint8 (H, W, 3), not {image.dtype} {image.shape}"
            )
        if not all(1 <= side <= MAX_SIDE for side in image.shape[:2]):
            raise UsageError(
                f"the preprocessing kernel takes images with sides of 1..{MAX_SIDE} pixels, not"
                f" {image.shape[0]}x{image.shape[1]}"
            )
        if start + image.size > len(pixels):
            raise UsageError(
                f"the preprocessing kernel's plan is for {len(pixels)} bytes of pixels; raise its capacity to"
                f" {sum(one.size for one in images)}"
            )
        pixels[start : start + image.size].reshape(image.shape)[...] = image
        table[row] = (start, *image.shape[:2])
        start += image.size
    table[len(images) :] = table[len(images) - 1]
