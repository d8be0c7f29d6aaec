"""Draw training samples: the image as the network sees it, and its ground truth."""

from __future__ import annotations

import math

import cv2
import numpy as np

from yolact.config import Classes, ModelConfig
from yolact.data.batch import Sample
from yolact_runtime.draw import colour, draw_labels

# Inputs are enlarged until the longer side has so many pixels: labels are legible and hide little.
_SIDE = 800
# Boxes below this share of that side get a ring around them, of a radius of this share.
_TINY, _RING = 1 / 50, 1 / 40
_TEXT = 0.6


def draw_sample(sample: Sample, classes: Classes, model: ModelConfig) -> np.ndarray:
    """Draw a sample with masks (at the resolution of training), boxes and class names.

    Crowds are hatched; objects of a few pixels get a ring around them.

    Returns:
        (h, w, 3) uint8 BGR, a multiple of the input's size.
    """
    scale = math.ceil(_SIDE / max(model.input_shape))
    height, width = (scale * side for side in model.input_shape)
    longest = max(height, width)
    pixels = sample.image.numpy()[::-1].transpose(1, 2, 0)  # (H, W, 3) BGR
    pixels = pixels * np.array(model.std, np.float32) + np.array(model.mean, np.float32)
    canvas = cv2.resize(pixels.round().clip(0, 255).astype(np.uint8), (width, height))
    target = sample.target
    for crowd in _pixels(target.crowd_boxes.numpy(), width, height):
        _hatch(canvas, crowd)
    for index, mask in enumerate(target.masks.numpy()):
        large = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        canvas[large > 0] = (0.55 * canvas[large > 0] + 0.45 * np.array(colour(index))).astype(np.uint8)
        cv2.drawContours(canvas, contours, -1, colour(index), 1, cv2.LINE_AA)
    boxes = _pixels(target.boxes.numpy(), width, height)
    radius = round(_RING * longest)
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour(index), 1)
        if max(x2 - x1, y2 - y1) < _TINY * longest:
            x, y = (x1 + x2) // 2, (y1 + y2) // 2
            cv2.circle(canvas, (x, y), radius, colour(index), 2, cv2.LINE_AA)
            boxes[index] = [x - radius, y - radius, x + radius, y + radius]
    texts = [classes.names[label] for label in target.labels.tolist()]
    draw_labels(canvas, texts, np.reshape(boxes, (-1, 4)), _TEXT)
    return canvas


def _pixels(boxes: np.ndarray, width: int, height: int) -> list[list[int]]:
    sides = np.array([width, height] * 2, np.float32)
    return (boxes * sides).round().clip(0, sides - 1).astype(int).tolist()


def _hatch(canvas: np.ndarray, box: list[int]) -> None:
    """Draw diagonal lines, white and black, into a box."""
    x1, y1, x2, y2 = box
    region = canvas[y1 : y2 + 1, x1 : x2 + 1]
    y, x = np.mgrid[: region.shape[0], : region.shape[1]]
    phase = (x + y) % 14
    region[phase == 0] = 255
    region[phase == 1] = 0
    cv2.rectangle(canvas, (x1, y1), (x2, y2), (255, 255, 255), 1)
