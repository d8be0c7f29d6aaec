"""The map from an image to the network's input: crop, resize, mirror, flip and rotation in one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from yolact_runtime.metadata import InputSize, height_width


@dataclass(frozen=True)
class Geometry:
    """One affine map from an image to the network's input.

    The crop is resized, then mirrored, flipped and rotated, in this order.

    Attributes:
        crop: x1, y1, x2, y2 in whole pixels of the image; it may extend beyond the image (expansion).
        mirror: Exchange left and right.
        flip: Exchange top and bottom.
        turns: Quarter turns counter-clockwise, 0 to 3.
    """

    crop: tuple[int, int, int, int]
    mirror: bool = False
    flip: bool = False
    turns: int = 0

    @staticmethod
    def whole(height: int, width: int) -> Geometry:
        """The whole image, resized only."""
        return Geometry((0, 0, width, height))

    def turn(self, image: np.ndarray) -> np.ndarray:
        """Mirror, flip and rotate an array of rows and columns; a view."""
        if self.mirror:
            image = image[:, ::-1]
        if self.flip:
            image = image[::-1]
        return np.rot90(image, self.turns) if self.turns else image

    def turn_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """`turn` for (H, W, 3) float32, in memory row by row: OpenCV mirrors ten times as fast as NumPy."""
        return np.ascontiguousarray(
            replace(self, mirror=False).turn(cv2.flip(pixels, 1) if self.mirror else pixels)
        )

    def turn_region(self, region: np.ndarray, x: int, y: int) -> tuple[np.ndarray, int, int]:
        """Mirror, flip and rotate a region whose first pixel is at x, y in the image.

        Returns:
            The region, and the x and y of its first pixel in the rotated crop.
        """
        high, wide = region.shape[:2]
        x, y = x - self.crop[0], y - self.crop[1]
        full_width, full_height = self.crop[2] - self.crop[0], self.crop[3] - self.crop[1]
        x = full_width - x - wide if self.mirror else x
        y = full_height - y - high if self.flip else y
        for _ in range(self.turns):
            x, y, wide, high = y, full_width - x - wide, high, wide
            full_width, full_height = full_height, full_width
        return self.turn(region), x, y

    @property
    def turned_sides(self) -> tuple[int, int]:
        """Width and height of the crop after rotation."""
        x1, y1, x2, y2 = self.crop
        return (y2 - y1, x2 - x1) if self.turns % 2 else (x2 - x1, y2 - y1)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) x1 y1 x2 y2, from pixels of the image to float32 relative to the input, clipped."""
        x1, y1, x2, y2 = self.crop
        sides = np.array([x2 - x1, y2 - y1] * 2, np.float64)
        moved = ((boxes - np.array([x1, y1, x1, y1])) / sides).clip(0, 1)
        left, top, right, bottom = moved.T
        if self.mirror:
            left, right = 1 - right, 1 - left
        if self.flip:
            top, bottom = 1 - bottom, 1 - top
        for _ in range(self.turns):
            left, top, right, bottom = top, 1 - right, bottom, 1 - left
        return np.stack([left, top, right, bottom], axis=1).astype(np.float32)

    def keeps(self, boxes: np.ndarray) -> np.ndarray:
        """Which boxes (n, 4), in pixels of the image, have their centre in the crop: (n,) bool."""
        return centres_in(boxes, np.array([self.crop], np.float64))[0]

    def visible_pixels(self, image: np.ndarray, fill: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice]]:
        """The pixels that `resize` needs; the caller may change their colours first.

        Args:
            image: (H, W, 3) uint8.
            fill: (3,) float32, the colour outside the image.

        Returns:
            (h, w, 3) float32: the part of the image in the crop, with a border of one pixel if the crop
            extends beyond the image; and the slices of the image in it.
        """
        x1, y1, x2, y2 = self._visible(*image.shape[:2])
        if (x1, y1, x2, y2) == self.crop:
            return image[y1:y2, x1:x2].astype(np.float32), (slice(None), slice(None))
        pixels = np.empty((y2 - y1 + 2, x2 - x1 + 2, 3), np.float32)
        for line in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            line[:] = fill
        pixels[1:-1, 1:-1] = image[y1:y2, x1:x2]
        return pixels, (slice(1, -1), slice(1, -1))

    def resize(
        self, pixels: np.ndarray, shape: tuple[int, int], size: InputSize, fill: np.ndarray
    ) -> np.ndarray:
        """The crop at the size of the input, before mirroring and rotation.

        Bilinear with half-pixel centres, like `cv2.resize` of the crop.

        Args:
            pixels: From `visible_pixels`.
            shape: (height, width) of the image.
            size: S, or height and width, of the input; a turn by 90 degrees exchanges them here.
            fill: (3,) float32, the colour outside the image.

        Returns:
            (H, W, 3) float32, or (W, H, 3) before such a turn.
        """
        height, width = height_width(size)[:: -1 if self.turns % 2 else 1]
        x1, y1, x2, y2 = self.crop
        seen = self._visible(*shape)
        if seen == self.crop:
            return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        rows = np.empty((height, width * 3), np.float32)
        rows[:] = np.tile(fill, width)
        canvas = rows.reshape(height, width, 3)
        if seen[0] >= seen[2] or seen[1] >= seen[3]:
            return canvas
        # Where the crop ends inside the image, its border repeats its own pixels.
        columns = pixels.swapaxes(0, 1)
        for side, axis, edge, limit in zip(
            (0, 0, -1, -1), (columns, pixels) * 2, self.crop, seen, strict=True
        ):
            if edge == limit:
                axis[side] = axis[-2 if side else 1]
        left, top = seen[0] - 1 - x1, seen[1] - 1 - y1
        wide, high = (x2 - x1) / width, (y2 - y1) / height
        # The input pixels that depend on the image.
        i1, i2 = _reached(left, pixels.shape[1], wide, width)
        j1, j2 = _reached(top, pixels.shape[0], high, height)
        if i1 < i2 and j1 < j2:
            inverse = [[wide, 0, (i1 + 0.5) * wide - 0.5 - left], [0, high, (j1 + 0.5) * high - 0.5 - top]]
            cv2.warpAffine(
                pixels,
                np.array(inverse),
                (i2 - i1, j2 - j1),
                dst=canvas[j1:j2, i1:i2],
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
        return canvas

    def _visible(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The part of the crop inside an image, x1, y1, x2, y2; empty if they do not overlap."""
        x1, y1, x2, y2 = self.crop
        x1, y1 = min(max(x1, 0), width), min(max(y1, 0), height)
        return x1, y1, max(min(x2, width), x1), max(min(y2, height), y1)


def centres_in(boxes: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """Which boxes (n, 4) have their centre in which crops (c, 4): (c, n) bool."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # (n, 2)
    return ((crops[:, None, :2] < centres) & (centres < crops[:, None, 2:])).all(2)


def _reached(start: int, length: int, scale: float, size: int) -> tuple[int, int]:
    """The input pixels, first and past the last, whose centres fall on `length` pixels from `start` on."""
    first = math.ceil((start + 0.5) / scale - 0.5)
    last = math.floor((start + length - 0.5) / scale - 0.5)
    return max(first, 0), min(last + 1, size)
