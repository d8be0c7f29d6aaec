"""Training samples as pictures: what the network is shown, and what it is told to find there."""

from __future__ import annotations

import cv2
import numpy as np

from yolact.config import Classes, ModelConfig
from yolact.data.coco import Sample
from yolact_runtime.draw import colour, draw_labels

# Pictures of small inputs are enlarged to about this many pixels a side, for the labels to be legible.
_SIDE = 640


def draw_sample(sample: Sample, classes: Classes, model: ModelConfig) -> np.ndarray:
    """A sample with its masks (at the resolution they are learnt at), boxes and class names; crowds hatched.

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
    """White lines over black ones, aslant through the box."""
    x1, y1, x2, y2 = box
    part = canvas[y1 : y2 + 1, x1 : x2 + 1]
    y, x = np.mgrid[: part.shape[0], : part.shape[1]]
    phase = (x + y) % 14
    part[phase == 0] = 255
    part[phase == 1] = 0
    cv2.rectangle(canvas, (x1, y1), (x2, y2), (255, 255, 255), 1)
