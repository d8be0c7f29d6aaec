"""A synthetic video of moving shapes whose identities are known: to measure tracking.

The shapes are those of the synthetic dataset. They enter and leave the picture, and hide each other. A
shape that has left does not return: the next one has a new identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from yolact.dataset_tools.synthetic import background, outline_of, paint, rasterise
from yolact_runtime.errors import UsageError

# Diameters, and pixels per second, where the image is 128 pixels wide.
_DIAMETER = (32.0, 64.0)
_SPEED = (24.0, 60.0)
# Height of the waves that the shapes move in, as a share of their diameter, and their seconds.
_WAVE, _PERIOD = 0.3, (2.0, 4.0)
# What must be visible of a shape to be found: a share of it.
_VISIBLE_SHARE = 0.35


@dataclass(frozen=True)
class MovingFrame:
    """A frame and the n shapes that can be seen in it.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        time: Seconds since the first frame.
        identities: (n,) int64, from 1.
        labels: (n,) int64, index into `synthetic.SHAPES`.
        boxes: (n, 4) float32, x1 y1 x2 y2 in pixels, around what is visible.
    """

    image: np.ndarray
    time: float
    identities: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class _Shape:
    """A shape on its way through the picture; `mask` and `patch` are square."""

    identity: int
    label: int
    mask: np.ndarray
    patch: np.ndarray
    start: np.ndarray
    velocity: np.ndarray  # pixels per second
    period: float
    begin: float
    depth: float

    def centre(self, time: float) -> np.ndarray:
        """Where its centre is, (x, y) in pixels."""
        passed = time - self.begin
        along = self.start + self.velocity * passed
        across = np.array([-self.velocity[1], self.velocity[0]]) / np.linalg.norm(self.velocity)
        wave = _WAVE * len(self.mask) / 2 * math.sin(2 * math.pi * passed / self.period)
        return along + across * wave

    def gone(self, time: float, height: int, width: int) -> bool:
        """Whether it has left the picture for good."""
        x, y = self.start + self.velocity * (time - self.begin)
        side = len(self.mask)
        ended = x < -side if self.velocity[0] < 0 else x > width + side
        return bool(ended or not -side <= y <= height + side)


def moving_shapes(
    frames: int = 300,
    frame_rate: float = 30.0,
    size: tuple[int, int] = (240, 320),
    shapes: int = 4,
    seed: int = 0,
) -> Iterator[MovingFrame]:
    """Frames of shapes that move through the picture; the same arguments give the same frames.

    Args:
        frames: How many.
        frame_rate: Frames per second; the shapes move as fast at any rate.
        size: Height and width in pixels, each at least 48.
        shapes: How many are on their way at any time.
        seed: Of everything random.

    Raises:
        UsageError: an argument out of its range.
    """
    if min(frames, shapes) < 1 or min(size) < 48 or not frame_rate > 0:
        raise UsageError(
            f"moving shapes: {frames} frames of {size} with {shapes} shapes at {frame_rate} per second; sides"
            " must be 48 or more, and the others above 0"
        )
    rng = np.random.default_rng(seed)
    scene = _Scene(rng, size)
    for index in range(frames):
        yield scene.frame(index / frame_rate, shapes)


class _Scene:
    """Background, and the shapes on their way."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self._rng, self._size = rng, size
        self._scale = math.sqrt(size[0] * size[1]) / 128
        self._background = background(rng, *size)
        self._shapes: list[_Shape] = []
        self._count = 0

    def frame(self, time: float, shapes: int) -> MovingFrame:
        """The frame at this time, with so many shapes on their way."""
        self._shapes = [shape for shape in self._shapes if not shape.gone(time, *self._size)]
        while len(self._shapes) < shapes:
            # The first ones are spread over the picture.
            self._shapes.append(self._enter(time, ahead=time == 0))
        self._shapes.sort(key=lambda shape: shape.depth)
        image = self._background.copy()
        owner = np.zeros(self._size, np.int64)
        areas = {shape.identity: _put(image, owner, shape, shape.centre(time)) for shape in self._shapes}
        image = cv2.GaussianBlur(image, (3, 3), 0.6).astype(np.int16)
        image += self._rng.integers(-9, 10, image.shape, np.int16)
        return self._seen(image.clip(0, 255).astype(np.uint8), time, owner, areas)

    def _seen(self, image: np.ndarray, time: float, owner: np.ndarray, areas: dict[int, int]) -> MovingFrame:
        """The frame with the shapes of which enough is visible."""
        labels, identities, boxes = [], [], []
        for shape in self._shapes:
            y, x = np.nonzero(owner == shape.identity)
            if len(x) < max(1, _VISIBLE_SHARE * areas[shape.identity]):
                continue
            labels.append(shape.label)
            identities.append(shape.identity)
            boxes.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
        return MovingFrame(
            image,
            time,
            np.array(identities, np.int64),
            np.array(labels, np.int64),
            np.array(boxes, np.float32).reshape(-1, 4),
        )

    def _enter(self, time: float, ahead: bool) -> _Shape:
        """A new shape, which comes from the left or the right; with `ahead` it is on its way already."""
        rng, (height, width) = self._rng, self._size
        self._count += 1
        label = int(rng.integers(3))
        diameter = rng.uniform(*_DIAMETER) * self._scale
        side = math.ceil(diameter * 1.4) + 2
        shape = rasterise((outline_of(rng, label, diameter) + side / 2).round(2), side, side)
        mask, patch = np.zeros((side, side), bool), np.zeros((side, side, 3), np.uint8)
        mask[shape.inside] = shape.mask
        paint(rng, patch, shape, label)
        right = rng.random() < 0.5
        speed = rng.uniform(*_SPEED) * self._scale
        slope = rng.uniform(-0.25, 0.25)
        start = np.array([width + side / 2 if right else -side / 2, rng.uniform(0.2, 0.8) * height])
        velocity = np.array([-speed if right else speed, slope * speed])
        begin = time - (rng.uniform(0.1, 0.9) * width / speed if ahead else 0)
        return _Shape(
            self._count, label, mask, patch, start, velocity, rng.uniform(*_PERIOD), begin, rng.random()
        )


def _put(image: np.ndarray, owner: np.ndarray, shape: _Shape, centre: np.ndarray) -> int:
    """Draw a shape; returns its area in pixels, also of what is outside the picture."""
    side = len(shape.mask)
    corner = centre - side / 2
    x, y = math.floor(corner[0]), math.floor(corner[1])
    move = np.array([[1, 0, corner[0] - x], [0, 1, corner[1] - y]])
    size = (side + 1, side + 1)
    mask = cv2.warpAffine(shape.mask.astype(np.float32), move, size) > 0.5
    patch = cv2.warpAffine(shape.patch, move, size, borderMode=cv2.BORDER_REPLICATE)
    height, width = owner.shape
    top, left = max(0, y), max(0, x)
    bottom, right = min(height, y + side + 1), min(width, x + side + 1)
    if top < bottom and left < right:
        part = slice(top - y, bottom - y), slice(left - x, right - x)
        inside = mask[part]
        image[top:bottom, left:right][inside] = patch[part][inside]
        owner[top:bottom, left:right][inside] = shape.identity
    return int(mask.sum())
