"""Overlays: mask, box and label of every instance."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from yolact_runtime.errors import escape_controls
from yolact_runtime.masks import Region

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_OPACITY = 0.45
_GREY = (160, 160, 160)
# Sides of small boxes, as a multiple of the thickness of their lines.
_SMALL = 6
# Font scales: of the smallest canvases, and below which nobody can read a label.
_SMALLEST, _UNREADABLE = 0.33, 0.25
# The share of boxes that a label at a corner of its box may hide; else it may move away, so many heights.
_LITTLE, _RINGS = 0.05, 6
# The share of boxes that a label rather hides than move away by its height.
_AWAY = 0.04
# Characters of a label; more fit into no canvas.
_LONGEST = 500
# The share of the canvas that all labels may take: those of many small objects would hide a small image.
_MOST = 0.25


def draw_instances(
    image: np.ndarray,
    regions: Sequence[Region],
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """A copy of an image with n instances drawn on it, the first one on top.

    Small instances have thin outlines and boxes with a margin, so that lines do not hide them.

    Args:
        image: (H, W, 3) uint8 BGR; it is not modified.
        regions: n masks.
        boxes: (n, 4) int, x1 y1 x2 y2 in pixels.
        texts: n labels, such as "dog 0.87".
        colours: n colours, BGR; by default each instance has its own.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    canvas = np.array(image)
    colours = [colour(index) for index in range(len(regions))] if colours is None else colours
    last_first = range(len(regions) - 1, -1, -1)
    thickness = max(1, round(min(image.shape[:2]) / 400))
    sides = boxes[:, 2:] - boxes[:, :2]  # (n, 2)
    thin = np.clip(sides.min(axis=1, initial=thickness * _SMALL) // _SMALL, 1, thickness)
    for index in last_first:
        _draw_mask(canvas, regions[index], colours[index], int(thin[index]))
    margins = np.maximum(0, (thickness * _SMALL - sides + 1) // 2)
    frames = np.concatenate([boxes[:, :2] - margins, boxes[:, 2:] + margins], axis=1)
    for index in last_first:
        x1, y1, x2, y2 = frames[index].tolist()
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colours[index], thickness)
    draw_labels(canvas, texts, frames, colours=colours)
    return canvas


def colour(index: int) -> tuple[int, int, int]:
    """BGR colour of the index-th instance; neighbours in the list are far apart in hue."""
    # Steps of the golden ratio never come close to an earlier hue for long.
    hue = (index * 0.618034 + 0.05) % 1.0
    value = 1.0 if index % 2 == 0 else 0.8
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return int(blue * 255), int(green * 255), int(red * 255)


def track_colour(track: int) -> tuple[int, int, int]:
    """BGR colour of a track, the same in every frame; grey for instances without one (-1)."""
    return colour(track) if track >= 0 else _GREY


def _draw_mask(canvas: np.ndarray, region: Region, bgr: tuple[int, int, int], thickness: int) -> None:
    if not len(region.edges):
        return
    mask = np.ascontiguousarray(region.mask).view(np.uint8)
    part = canvas[region.y : region.y + region.height, region.x : region.x + region.width]
    # Looking every value of the box up and copying those inside takes a fifth of computing those inside.
    cv2.copyTo(cv2.LUT(part, _blend(bgr)), mask, part)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(region.x, region.y))
    cv2.drawContours(canvas, contours, -1, bgr, thickness, cv2.LINE_AA)


@lru_cache(maxsize=256)
def _blend(bgr: tuple[int, int, int]) -> np.ndarray:
    """(1, 256, 3) uint8: what each value of each channel becomes below a mask of colour `bgr`."""
    values = np.arange(256)[:, None] * (1 - _OPACITY) + np.array(bgr) * _OPACITY  # (256, 3)
    return values.astype(np.uint8)[None]


def draw_labels(
    canvas: np.ndarray,
    texts: Sequence[str],
    boxes: np.ndarray,
    size: float = 1.0,
    colours: Sequence[tuple[int, int, int]] | None = None,
) -> None:
    """Label boxes; no label covers another one, and none covers a box where there is space elsewhere.

    A label is above its box, below it or next to it, whichever hides the smallest shares of all boxes; if
    that is much, it may be farther away. Its height grows with the canvas. The first label chooses first. A
    label is left out if there is no free place, if labels would hide over half of a box, or if all labels
    would take over a quarter of the canvas.

    Args:
        canvas: (H, W, 3) uint8 BGR, drawn on.
        texts: One for each box.
        boxes: (n, 4) int, x1 y1 x2 y2 in pixels.
        size: Of the text, where 1 is legible if the whole canvas is on a screen.
        colours: Of the labels, BGR; by default the `colour` of each box's index.
    """
    height, width = canvas.shape[:2]
    taken = np.empty((0, 4), np.int64)
    space = _MOST * height * width
    covered = np.zeros(len(boxes))  # the share of each box that labels hide
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(1).prod(axis=1)
    for index, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        # OpenCV crashes on half a character (a lone surrogate).
        label = _fit(escape_controls(text[:_LONGEST]), height, width, size)
        if label is None or (len(taken) and space < label.width * label.height):
            continue
        for rings in (0, _RINGS):
            places = _places(box, label, height, width, rings)
            places = places[_shared_area(places, taken).sum(axis=1) == 0]
            hidden = _shared_area(places, boxes) / areas  # of each box by each place
            away = np.maximum(places[:, :2] - box[2:], box[:2] - places[:, 2:]).max(axis=1).clip(0)
            costs = hidden.sum(axis=1) + _AWAY * (away // label.height)
            costs[(covered + hidden).max(axis=1) > 0.5] = np.inf
            if len(costs) and costs.min() < (_LITTLE if not rings else np.inf):
                best = int(costs.argmin())  # the first of equals
                place = places[best]
                covered += hidden[best]
                taken = np.concatenate([taken, place[None]])
                space -= label.width * label.height
                _draw_label(canvas, label, place, colours[index] if colours else colour(index))
                break


class _Label(NamedTuple):
    """A text, its font scale and stroke, its origin in the plate below it and the plate's size, in pixels."""

    text: str
    scale: float
    weight: int
    origin: tuple[int, int]
    width: int
    height: int


def _fit(text: str, height: int, width: int, size: float) -> _Label | None:
    """The label of a canvas of this size: shrunk where it is too wide, None where nobody could read it."""
    scale = min(max(size * min(height, width) / 1000, _SMALLEST), 2.5)
    while scale >= _UNREADABLE:
        weight = max(1, round(scale * 1.5))
        (wide, high), below = cv2.getTextSize(text, _FONT, scale, weight)
        pad = max(1, round(high / 4))
        label = _Label(text, scale, weight, (pad, pad + high), wide + 2 * pad, high + below + 2 * pad)
        if label.width <= width and label.height <= height:
            return label
        scale *= 0.9
    return None


def _places(box: np.ndarray, label: _Label, height: int, width: int, rings: int) -> np.ndarray:
    """Where a label can be (n, 4), x1 y1 x2 y2 within the canvas, the favourite first.

    These are the corners of the box, and places on a number of rings around it.
    """
    x1, y1, x2, y2 = box.tolist()
    above, below, right, left = y1 - label.height, y2 + 1, x2 + 1, x1 - label.width
    corners = [(x1, above), (x1, below), (x2 - label.width, above), (x2 - label.width, below)]
    corners += [(right, y1), (left, y1), (right, y2 - label.height), (left, y2 - label.height)]
    xs = range(left, right + 1, max(1, (right - left) // 6))
    ys = range(above, below + 1, max(1, (below - above) // 6))
    for gap in range(0, rings * label.height, label.height):
        corners += [(x, y) for x in xs for y in (above - gap, below + gap)]
        corners += [(x, y) for y in ys for x in (right + gap, left - gap)]
    limit = width - label.width, height - label.height
    first = np.clip(np.array(corners), 0, limit)
    return np.concatenate([first, first + np.array([label.width, label.height])], axis=1)


def _shared_area(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pixels (n, m) that each of the places (n, 4) shares with each of the others (m, 4)."""
    low = np.maximum(places[:, None, :2], others[None, :, :2])
    high = np.minimum(places[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(0).prod(axis=2)


def _draw_label(canvas: np.ndarray, label: _Label, place: np.ndarray, bgr: tuple[int, int, int]) -> None:
    x1, y1, x2, y2 = place.tolist()
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), bgr, cv2.FILLED)
    blue, green, red = bgr
    luminance = 0.114 * blue + 0.587 * green + 0.299 * red
    ink = (0, 0, 0) if luminance > 128 else (255, 255, 255)
    origin = x1 + label.origin[0], y1 + label.origin[1]
    cv2.putText(canvas, label.text, origin, _FONT, label.scale, ink, label.weight, cv2.LINE_AA)
