import itertools

import cv2
import numpy as np
import pytest
from fake_onnx import NATIVE

from yolact_runtime import Result, YolactError
from yolact_runtime.draw import colour


def make(boxes, height, width, name="person"):
    n = len(boxes)
    return Result(
        height, width, np.array(boxes, np.float32), *[np.full(n, 0.87, np.float32)] * 2,
        np.zeros(n, np.int64), np.full((n, 1), 5, np.float32), np.ones((20, 20, 1), np.float32),
        (name, *NATIVE.class_names), (1, 2, 3, 4),
    )  # fmt: skip


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_instances_are_seen_on_any_background(shade):
    image = np.full((200, 300, 3), shade, np.uint8)
    drawn = make([(0.3, 0.3, 0.6, 0.8), (0.65, 0.3, 0.9, 0.8)], 200, 300).draw(image)
    assert (image == shade).all() and drawn.dtype == np.uint8
    changed = (drawn != image).any(axis=2)
    assert changed[65:155, 95:175].all() and not changed[180:].any()
    one, other = drawn[120, 130].astype(int), drawn[120, 230].astype(int)
    assert np.abs(one - other).max() > 60


def test_a_label_is_legible_and_inside():
    for boxes in ([(0, 0, 0.2, 0.2)], [(0.95, 0.97, 1, 1)], [(0.9, 0, 1, 1)]):
        drawn = make(boxes, 240, 320).draw(np.zeros((240, 320, 3), np.uint8))
        plate = (drawn == colour(0)).all(axis=2)
        rows = np.flatnonzero(plate.sum(axis=1) > 60)  # the plate is the only part that wide
        assert len(rows) >= 10 and rows.min() >= 0 and rows.max() < 240


def test_text_contrasts_with_every_plate():
    for index in range(100):
        blue, green, red = colour(index)
        luminance = 0.114 * blue + 0.587 * green + 0.299 * red
        assert max(luminance, 255 - luminance) > 100


def test_colours_of_neighbours_differ():
    hues = [cv2.cvtColor(np.uint8([[colour(i)]]), cv2.COLOR_BGR2HSV)[0, 0, 0] for i in range(30)]
    gaps = [abs(int(a) - int(b)) for a, b in itertools.pairwise(hues)]
    assert min(min(gap, 180 - gap) for gap in gaps) > 40
    assert len({colour(i) for i in range(100)}) == 100


@pytest.mark.parametrize("size", [(1, 1), (8000, 50), (3, 400), (12, 12)])
def test_images_too_small_for_a_label(size):
    image = np.zeros((*size, 3), np.uint8)
    assert make([(0, 0, 1, 1)], *size, name="a very long class name").draw(image).shape == image.shape


def test_the_wrong_image():
    with pytest.raises(YolactError, match="the image is 5 x 4, the result 6 x 4"):
        make([], 4, 6).draw(np.zeros((4, 5, 3), np.uint8))
