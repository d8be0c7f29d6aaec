"""The runs of masks at image size, from the cells of the prototypes that their outlines cross.

Along a column of the image, the resized values of a mask are linear between prototype rows. So the points
where they cross 0.5, the ends of COCO's runs, follow from the prototype rows alone, without computing the
pixels between. And a value between four cells lies between theirs, also after rounding: no outline passes
between four cells that are all above 0.5, or all not above. What is left is about one square of four cells
for each cell of the outline.

All instances are processed at once. Single ones are so small that the overhead of NumPy dominates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from yolact_runtime.preprocess import bilinear_axis

# Cells of the prototypes processed at once, and squares of four cells at columns of the image. Besides, a few
# arrays have one value for each column of the image that an instance covers.
_CELLS, _PAIRS = 1 << 20, 1 << 16
# The sigmoid of every greater value is above 0.5; that of 1e-8 is 0.5 in float32.
_SURE = 1e-6


class _Axis(NamedTuple):
    """Bilinear interpolation along one axis.

    Attributes:
        weight: (pixels,) float32, weight of the second of the two cells that a pixel is interpolated from.
        first, pixels: (cells + 2,) for cell -1 and up, the first of the pixels that it is the first cell of,
            and their number.
        start, stop: (cells,) the first pixel that each cell contributes to, and the one past the last.
    """

    weight: np.ndarray
    first: np.ndarray
    pixels: np.ndarray
    start: np.ndarray
    stop: np.ndarray


@lru_cache(maxsize=64)
def _axis(cells: int, pixels: int) -> _Axis:
    low, high, weight = bilinear_axis(cells, pixels)
    each = np.arange(cells)
    ends = np.searchsorted(low, np.arange(-2, cells + 1), side="right")
    stop = np.searchsorted(low, each, side="right")
    return _Axis(weight, ends[:-1], np.diff(ends), np.searchsorted(high, each), stop)


class Found(NamedTuple):
    """The masks of n instances.

    Attributes:
        rectangles: (n, 4) int64: left, top, width and height in pixels of the rectangle around the cells
            above 0.5; zeros for an empty mask.
        edges: The ends of the runs of each, as in `masks.Region`.
    """

    rectangles: np.ndarray
    edges: list[np.ndarray]


def find_edges(
    coefficients: np.ndarray, prototypes: np.ndarray, bounds: np.ndarray, height: int, width: int
) -> Iterator[Found]:
    """The runs above 0.5 of masks in an image of `height` x `width` pixels, some instances after the other.

    Args:
        coefficients: (n, M) float32.
        prototypes: (Hp, Wp, M) float32.
        bounds: (n, 4) int64 from `masks.crop_bounds`.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    # A box outside the image keeps a rectangle of no cells.
    sides = np.maximum(bounds[:, 2:] - bounds[:, :2], 0)
    columns = np.cumsum(sides[:, 0] + 2) * (int(sides[:, 1].max(initial=0)) + 2)
    start = 0
    while start < len(bounds):
        before = columns[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(columns, before + _CELLS, side="right")))
        some = slice(start, stop)
        yield _Canvas(coefficients[some], prototypes, bounds[some], sides[some]).find(height, width)
        start = stop


class _Canvas:
    """Logits of some instances next to each other, with a margin of one cell around each."""

    def __init__(
        self, coefficients: np.ndarray, prototypes: np.ndarray, bounds: np.ndarray, sides: np.ndarray
    ) -> None:
        """Compute them."""
        self.size = prototypes.shape[:2]
        self.bounds, self.widths = bounds, sides[:, 0] + 2
        self.offsets = np.cumsum(self.widths) - self.widths
        # The sigmoid of the margin is 0, the value of cropped cells.
        self.logits = np.full((int(sides[:, 1].max()) + 2, int(self.widths.sum())), -np.inf, np.float32)
        places = zip(coefficients, bounds.tolist(), (self.offsets + 1).tolist(), strict=True)
        with np.errstate(over="ignore"):  # once: it takes as long as a small product
            for row, (x0, y0, x1, y1), left in places:
                if x1 > x0 and y1 > y0:
                    inside = self.logits[1 : 1 + y1 - y0, left : left + x1 - x0]
                    np.matmul(prototypes[y0:y1, x0:x1], row, out=inside)
                    if x1 == self.size[1]:  # values are constant beyond the outermost cells
                        self.logits[1 : 1 + y1 - y0, left + x1 - x0] = inside[:, -1]

    def find(self, height: int, width: int) -> Found:
        """The masks in an image of that size."""
        column, row = self._squares()
        total = self.logits.shape[1]
        each = np.bincount(column, minlength=total)  # squares of each column
        first = np.cumsum(each) - each
        rectangles = self._rectangles(column, row, np.append(first, len(column)), height, width)
        axis = _axis(self.size[1], width)
        # The prototype column of each column here, from -1 on.
        inner = np.arange(total) - np.repeat(self.offsets + 1 - self.bounds[:, 0], self.widths)
        shown = axis.pixels[inner + 1]
        shown[(each == 0) | np.repeat(rectangles[:, 2] == 0, self.widths)] = 0
        # Each column of the image with squares, in the order of the instances.
        cells = np.repeat(np.arange(total), shown)
        ends = np.cumsum(shown)
        pixels = np.arange(len(cells)) + np.repeat(axis.first[inner + 1] - (ends - shown), shown)
        top = row + (np.repeat(self.bounds[:, 1], self.widths) - 1).take(column)
        crossings = _Crossings(self._corners(column, row), top, self.size[0], height)
        of_instance = ends[self.offsets + self.widths - 1]  # image columns up to the end of each
        edges = crossings.runs(first[cells], each[cells], axis.weight[pixels], pixels * height, of_instance)
        return Found(rectangles, edges)

    def _squares(self) -> tuple[np.ndarray, np.ndarray]:
        """Left column and upper row of each four cells that an outline may pass between, column by column."""
        count = (self.logits > 0).view(np.uint8) + (self.logits > _SURE).view(np.uint8)
        count = count[:, :-1] + count[:, 1:]
        count = count[:-1] + count[1:]
        mixed = cv2.transpose(count & 7)  # 0 and 8: the same side of 0.5
        place = np.flatnonzero(mixed.view(bool))
        column = place // mixed.shape[1]
        return column, place - column * mixed.shape[1]

    def _rectangles(
        self, column: np.ndarray, row: np.ndarray, first: np.ndarray, height: int, width: int
    ) -> np.ndarray:
        """(n, 4): left, top, width, height of the pixels that cells above 0 contribute to.

        The cells above 0 have squares around them, whose left column and upper row are one less. `first` is
        the first square of each column, and their number.
        """
        found = np.zeros((len(self.bounds), 4), np.int64)
        starts, stops = first[self.offsets], first[self.offsets + self.widths]
        some = np.flatnonzero(stops > starts)
        if not len(some):
            return found
        starts, stops, low = starts[some], stops[some], self.bounds[some, :2]
        origin = self.offsets[some]
        # The column that repeats the last one of the image counts as that.
        last = np.minimum(column[stops - 1], origin + self.widths[some] - 2)
        found[some, 0], found[some, 2] = column[starts] + 1, last
        found[some, 0::2] += (low[:, 0] - origin - 1)[:, None]
        found[some, 1] = np.minimum.reduceat(row, starts) + low[:, 1]
        found[some, 3] = np.maximum.reduceat(row, starts) + low[:, 1] - 1
        for side, axis in enumerate((_axis(self.size[1], width), _axis(self.size[0], height))):
            start = axis.start[found[some, side]]
            found[some, side + 2] = axis.stop[found[some, side + 2]] - start
            found[some, side] = start
        # The image is smaller than the prototypes and skips these cells.
        found[(found[:, 2:] <= 0).any(axis=1)] = 0
        return found

    def _corners(self, column: np.ndarray, row: np.ndarray) -> np.ndarray:
        """(4, squares) float32: the upper left cell, and what the right one has more; then the same below."""
        stride = self.logits.shape[1]
        place = row * stride + column + np.array([[0], [1], [stride], [stride + 1]])
        with np.errstate(over="ignore"):
            values = sigmoid(self.logits.take(place))
        values[1::2] -= values[0::2]
        return values


class _Crossings(NamedTuple):
    """Where the values along the columns of an image cross 0.5.

    Attributes:
        corners: (4, squares) float32, see `_Canvas._corners`.
        top: (squares,) the prototype row of the upper cells; -1 above the first.
        cells: Rows of the prototypes.
        height: Rows of the image.
    """

    corners: np.ndarray
    top: np.ndarray
    cells: int
    height: int

    def runs(
        self,
        first: np.ndarray,
        count: np.ndarray,
        weight: np.ndarray,
        origin: np.ndarray,
        of_instance: np.ndarray,
    ) -> list[np.ndarray]:
        """The edges of each instance.

        Args:
            first: (columns,) the first square of each column of the image.
            count: (columns,) the number of its squares.
            weight: (columns,) float32, of the right cells.
            origin: (columns,) pixels of the image before it, column by column.
            of_instance: (n,) columns up to the end of each instance.
        """
        ends = np.cumsum(count)
        starts, stops, owners = [], [], []
        at = 0
        while at < len(count):
            before = int(ends[at - 1]) if at else 0
            to = max(at + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
            some = slice(at, to)
            start, stop, column = self._of_columns(first[some], count[some], weight[some], origin[some])
            starts.append(start)
            stops.append(stop)
            owners.append(column + at)
            at = to
        if not starts:
            return [np.empty(0, np.int64) for _ in of_instance]
        return _join(np.concatenate(starts), np.concatenate(stops), np.concatenate(owners), of_instance)

    def _of_columns(
        self, first: np.ndarray, count: np.ndarray, weight: np.ndarray, origin: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First pixel, pixel past the last, and column of each run within some columns."""
        column = np.repeat(np.arange(len(count)), count)
        square = (first - (np.cumsum(count) - count)).take(column)
        square += np.arange(len(square))
        right = weight.take(column)
        # Values of each pair of a square and a column.
        upper, lower = (self._between(self.corners[row : row + 2], square, right) for row in (0, 2))
        pair = np.flatnonzero((upper > 0.5) != (lower > 0.5))
        low, cell, column = upper.take(pair), self.top.take(square.take(pair)), column.take(pair)
        crossing = cell + (0.5 - low) / (lower.take(pair) - low)  # between cell and cell + 1
        crossing += 0.5
        crossing *= self.height / self.cells
        crossing -= 0.5  # in pixels
        # Values are constant beyond the outermost cells.
        crossing[cell < 0] = -0.5
        crossing[cell == self.cells - 1] = self.height
        # Crossings alternate between rising and falling. A pixel of exactly 0.5 is not set.
        column = column[0::2]
        before = origin.take(column)
        starts = np.floor(crossing[0::2]).astype(np.int64) + (before + 1)
        stops = np.ceil(crossing[1::2]).astype(np.int64) + before
        return starts, stops, column

    @staticmethod
    def _between(corners: np.ndarray, square: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Values between the left and the right cell."""
        values = corners[1].take(square)
        values *= weight
        values += corners[0].take(square)
        return values


def _join(
    starts: np.ndarray, stops: np.ndarray, columns: np.ndarray, of_instance: np.ndarray
) -> list[np.ndarray]:
    """The edges of each instance from its runs within columns."""
    seen = stops > starts  # a run may lie between two pixels
    if not seen.all():
        starts, stops, columns = starts[seen], stops[seen], columns[seen]
    ends = np.searchsorted(columns, of_instance)  # runs up to the end of each instance
    # A run may continue at the top of the next column.
    apart = np.ones(len(starts) + 1, bool)
    np.not_equal(starts[1:], stops[:-1], out=apart[1:-1])
    apart[ends] = True
    first, last = apart[:-1], apart[1:]
    if not apart.all():
        ends = np.concatenate([[0], np.cumsum(first)])[ends]
        starts, stops = starts[first], stops[last]
    edges = np.empty(2 * len(starts), np.int64)
    edges[0::2], edges[1::2] = starts, stops
    cuts = [0, *(2 * ends).tolist()]
    return [edges[start:stop] for start, stop in itertools.pairwise(cuts)]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The sigmoid of any value; the caller silences the overflow warning for large negative ones."""
    out = np.negative(x)
    np.exp(out, out=out)
    out += 1
    return np.reciprocal(out, out=out)
