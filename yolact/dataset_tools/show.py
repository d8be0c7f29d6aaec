"""Draw training samples: the image as the network sees it, and its ground truth."""

from __future__ import annotations

import cv2
import numpy as np

from yolact.config import Classes, ModelConfig
from yolact.data.batch import Sample
from yolact_runtime.draw import colour, draw_labels

# Small inputs are enlarged to about this many pixels a side, so that labels are legible.
_SIDE = 640


def draw_sample(sample: Sample, classes: Classes, model: ModelConfig) -> np.ndarray:
    """Draw a sample with masks (at the resolution of training), boxes and class names; crowds are hatched.

    Returns:
        (H, H, 3) uint8 BGR, H a multiple of the input size.
    """
    size = model.input_size * max(1, round(_SIDE / model.input_size))
    pixels = sample.image.numpy()[::-1].transpose(1, 2, 0)  # (S, S, 3) BGR
    pixels = pixels * np.array(model.std, np.float32) + np.array(model.mean, np.float32)
    canvas = cv2.resize(pixels.round().clip(0, 255).astype(np.uint8), (size, size))
    target = sample.target
    for crowd in _pixels(target.crowd_boxes.numpy(), size):
        _hatch(canvas, crowd)
    for index, mask in enumerate(target.masks.numpy()):
        large = cv2.resize(mask.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        canvas[large > 0] = (0.55 * canvas[large > 0] + 0.45 * np.array(colour(index))).astype(np.uint8)
        cv2.drawContours(canvas, contours, -1, colour(index), 1, cv2.LINE_AA)
    boxes = _pixels(target.boxes.numpy(), size)
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour(index), 1)
    draw_labels(
        canvas, [classes.names[label] for label in target.labels.tolist()], np.reshape(boxes, (-1, 4))
    )
    return canvas


def _pixels(boxes: np.ndarray, size: int) -> list[list[int]]:
    return (boxes * size).round().astype(int).clip(0, size - 1).tolist()


def _hatch(canvas: np.ndarray, box: list[int]) -> None:
    """Draw diagonal lines, white and black, into a box."""
    x1, y1, x2, y2 = box
    region = canvas[y1 : y2 + 1, x1 : x2 + 1]
    y, x = np.mgrid[: region.shape[0], : region.shape[1]]
    phase = (x + y) % 14
    region[phase == 0] = 255
    region[phase == 1] = 0
    cv2.rectangle(canvas, (x1, y1), (x2, y2), (255, 255, 255), 1)
