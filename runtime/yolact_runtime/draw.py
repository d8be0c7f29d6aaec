"""Overlays: mask, box and label of every instance."""

from __future__ import annotations

import colorsys
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from yolact_runtime.errors import YolactError
from yolact_runtime.masks import Region

if TYPE_CHECKING:
    from yolact_runtime.results import Result

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_OPACITY = 0.45


def draw(image: np.ndarray, result: Result) -> np.ndarray:
    """`image` with the instances over it, the best one on top.

    Args:
        image: (H, W, 3) uint8 BGR, the one `result` was found in; it is not modified.
        result: What was found; each instance gets its own colour and a plate "class 0.87".

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        YolactError: the image has another size.
    """
    if image.shape[:2] != (result.height, result.width):
        raise YolactError(
            f"the image is {image.shape[1]} x {image.shape[0]}, the result {result.width} x {result.height}"
        )
    canvas = np.array(image)
    worst_first = range(len(result) - 1, -1, -1)
    thickness = max(1, round(min(result.height, result.width) / 400))
    boxes, names = result.boxes.tolist(), result.names
    for index in worst_first:
        _draw_mask(canvas, result.regions[index], colour(index), thickness)
    for index in worst_first:
        x1, y1, x2, y2 = boxes[index]
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour(index), thickness)
    for index in worst_first:
        x1, y1 = boxes[index][:2]
        draw_label(canvas, f"{names[index]} {result.mask_scores[index]:.2f}", x1, y1, colour(index))
    return canvas


def colour(index: int) -> tuple[int, int, int]:
    """BGR colour of the index-th instance; neighbours in the list are far apart in hue."""
    # Steps of the golden ratio never come close to an earlier hue for long.
    hue = (index * 0.618034 + 0.05) % 1.0
    value = 1.0 if index % 2 == 0 else 0.8
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return int(blue * 255), int(green * 255), int(red * 255)


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


def draw_label(canvas: np.ndarray, text: str, x: int, y: int, bgr: tuple[int, int, int]) -> None:
    """Put `text` on a plate of colour `bgr` above the point (x, y), wholly inside the canvas (H, W, 3)."""
    height, width = canvas.shape[:2]
    scale = min(max(min(height, width) / 1000, 0.4), 2.5)
    weight = max(1, round(scale * 1.5))
    (text_width, text_height), below = cv2.getTextSize(text, _FONT, scale, weight)
    pad = max(2, round(text_height / 4))
    plate_width, plate_height = text_width + 2 * pad, text_height + below + 2 * pad
    if plate_width > width or plate_height > height:
        # A label that does not fit is shrunk until it would be unreadable, and then left out.
        fit = min(width / plate_width, height / plate_height) * scale
        if fit < 0.3:
            return
        scale, weight, pad = fit, 1, 1
        (text_width, text_height), below = cv2.getTextSize(text, _FONT, scale, weight)
        plate_width, plate_height = text_width + 2 * pad, text_height + below + 2 * pad
    left = max(0, min(x, width - plate_width))
    top = y - plate_height if y >= plate_height else min(y, height - plate_height)
    top = max(0, top)
    cv2.rectangle(canvas, (left, top), (left + plate_width, top + plate_height), bgr, cv2.FILLED)
    blue, green, red = bgr
    luminance = 0.114 * blue + 0.587 * green + 0.299 * red
    ink = (0, 0, 0) if luminance > 128 else (255, 255, 255)
    origin = (left + pad, top + pad + text_height)
    cv2.putText(canvas, text, origin, _FONT, scale, ink, weight, cv2.LINE_AA)
