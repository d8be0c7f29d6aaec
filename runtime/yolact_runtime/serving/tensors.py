"""The inputs and outputs of the models that a Triton server runs: version 1 of them.

A request is one image: one of `image`, `array` and `prepared` with `size`. The server forms the batches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

API = "1"


class Spec(NamedTuple):
    """A tensor: NumPy's name of its type, "bytes" for text; its shape without the batch, None if dynamic."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


# An encoded file; BGR pixels; height and width of the image, in pixels.
IMAGE = Spec("image", "bytes", (1,))
ARRAY = Spec("array", "uint8", (None, None, 3))
SIZE = Spec("size", "int32", (2,))


def prepared(shape: tuple[int, int], dtype: str) -> Spec:
    """The image as the network takes it: what `Engine.prepare` returns."""
    return Spec("prepared", dtype, (*shape, 3))


# For n instances, best first: boxes x1 y1 x2 y2 in pixels and relative to the image, scores of boxes and
# masks, the dataset's category ids, "counts" of each mask's COCO RLE, and pixels of each mask.
OUTPUTS = (
    SIZE,
    Spec("boxes", "float32", (None, 4)),
    Spec("relative_boxes", "float32", (None, 4)),
    Spec("scores", "float32", (None,)),
    Spec("mask_scores", "float32", (None,)),
    Spec("category_ids", "int64", (None,)),
    Spec("rles", "bytes", (None,)),
    Spec("areas", "int64", (None,)),
)
# JSON: "engine", "precision" and "version" of what computes on the server.
ENGINE = Spec("engine", "bytes", (1,))

Answer = dict[str, np.ndarray]
