"""The answer to a request: a result as arrays by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from yolact_runtime.results import Result

# Version of the inputs, outputs and parameters, which the configuration of a model says as well.
API = "1"
# Each output of n instances; a dimension for the batch comes in front.
OUTPUTS: dict[str, Callable[[Result], np.ndarray]] = {
    "boxes": lambda result: result.boxes_float,  # (n, 4) float32 x1 y1 x2 y2 in pixels
    "relative_boxes": lambda result: result.relative_boxes,  # (n, 4) float32, as decoded
    "scores": lambda result: result.scores,  # (n,) float32
    "mask_scores": lambda result: result.mask_scores,  # (n,) float32
    "category_ids": lambda result: result.category_ids,  # (n,) int64
    "rles": lambda result: _counts(result),  # (n,) bytes: `counts` of COCO's RLE
    "areas": lambda result: result.areas,  # (n,) int64 pixels
    "size": lambda result: np.array([result.height, result.width], np.int32),  # (2,) of the image
}


def answer(result: Result, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """Those outputs of a result that are wanted; masks are computed for "rles" and "areas" only."""
    return {name: np.ascontiguousarray(OUTPUTS[name](result)[None]) for name in wanted if name in OUTPUTS}


def _counts(result: Result) -> np.ndarray:
    counts = np.empty(len(result), object)
    counts[:] = [rle["counts"].encode("ascii") for rle in result.rles]
    return counts
