from __future__ import annotations

import numpy as np
import pytest

from yolact.config import ModelConfig
from yolact.data.annotations import read_classes
from yolact.data.coco import CocoDataset
from yolact.dataset_tools.show import draw_sample
from yolact_runtime.draw import colour


def test_wide_inputs_are_drawn_wide(write_coco, make_square) -> None:
    folder, path = write_coco([(100, 200)], [make_square(20, 40, 50)])
    model, classes = ModelConfig(input_size=(96, 176)), read_classes(path)
    picture = draw_sample(CocoDataset(folder, path, model, classes)[0], classes, model)
    assert picture.shape == (5 * 96, 5 * 176, 3)
    rows, columns = np.nonzero((picture == colour(0)).all(axis=2))
    # The lower right corner of the box, 70, 90 in the image; its label is at the upper left one.
    assert columns.max() == pytest.approx(70 / 200 * 880, abs=3)
    assert rows.max() == pytest.approx(90 / 100 * 480, abs=3)


@pytest.mark.parametrize("size", [128, 550])
def test_small_inputs_are_enlarged_and_tiny_objects_ringed(write_coco, make_square, size: int) -> None:
    folder, path = write_coco([(size, size)], [make_square(60, 60, 2), make_square(10, 90, 30)])
    model, classes = ModelConfig(input_size=size), read_classes(path)
    picture = draw_sample(CocoDataset(folder, path, model, classes)[0], classes, model)
    side = len(picture)
    assert picture.shape == (side, side, 3)
    assert side >= 800
    assert side % size == 0
    # Two hundredths of a side around the tiny object, its colour lies in a ring of a few pixels' width.
    y, x = np.mgrid[:side, :side] - 61 * side // size
    ring = np.abs(np.hypot(x, y) - side / 40) < 2
    found = (picture == colour(0)).all(axis=2)
    assert found[ring].mean() > 0.5
    # None around the other one.
    y, x = y + (61 - 105) * side // size, x + (61 - 25) * side // size
    ring = np.abs(np.hypot(x, y) - side / 40) < 2
    assert (picture == colour(1)).all(axis=2)[ring].mean() < 0.1
