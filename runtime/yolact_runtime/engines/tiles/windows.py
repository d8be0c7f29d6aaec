"""Where an image is cut into tiles."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import NamedTuple

from yolact_runtime.errors import UsageError
from yolact_runtime.untrusted import beyond, limit

OVERLAP = 0.2
# The smallest tile in pixels, and the greatest overlap: more takes a hundred times the tiles of none.
_SMALLEST, _GREATEST = 32, 0.9


class Window(NamedTuple):
    """A tile in its image: first column, first row, column past the last, row past the last."""

    left: int
    top: int
    right: int
    bottom: int


def check_tiles(tile: int, overlap: float) -> None:
    """Raise a UsageError if the size of tiles or their overlap is out of its range."""
    if not (isinstance(tile, Integral) and _SMALLEST <= tile <= limit("side")):
        raise UsageError(
            f"tile is {tile!r}; it must be a whole number of pixels, {_SMALLEST} or more, and at most"
            f" {beyond('side')}"
        )
    if not (isinstance(overlap, Real) and 0 <= overlap <= _GREATEST):
        raise UsageError(f"tile overlap is {overlap!r}; it must be in 0..{_GREATEST}, a share of the tile")


def windows(height: int, width: int, tile: tuple[int, int], overlap: float) -> list[Window]:
    """The tiles of an image, row by row. All have the same size, and together they cover the image.

    Args:
        height, width: Of the image, in pixels.
        tile: Height and width of a tile; those of the image where they are less.
        overlap: Neighbours share at least this share of a tile, rounded to pixels.
    """
    tile_height, tile_width = min(tile[0], height), min(tile[1], width)
    return [
        Window(left, top, left + tile_width, top + tile_height)
        for top in _starts(height, tile_height, overlap)
        for left in _starts(width, tile_width, overlap)
    ]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """The first pixel of each tile along one axis, evenly spread."""
    step = max(1, tile - round(tile * overlap))
    gaps = math.ceil((length - tile) / step)
    return [index * (length - tile) // gaps for index in range(gaps + 1)] if gaps else [0]
