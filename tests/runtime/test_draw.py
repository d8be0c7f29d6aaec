import itertools

import cv2
import numpy as np
import pytest
from fake_onnx import NATIVE

from yolact_runtime import Result, YolactError
from yolact_runtime.draw import colour, draw_labels


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


@pytest.mark.parametrize(
    "text", ["\ud800", "a\udfffb", "\0", "\x1b[31m", "\n\r\t", "x" * 10**6, "größe 图", "", "\u202e"]
)
def test_any_text_can_be_drawn(text):
    """OpenCV crashes on half a character."""
    canvas = np.zeros((200, 300, 3), np.uint8)
    draw_labels(canvas, [text], np.array([[50, 50, 150, 150]]))


def plates(boxes, height, width, text="person 0.87"):
    """x1 y1 x2 y2 of the label of each box, from the pixels in its colour; None for one that is not drawn."""
    canvas = np.full((height, width, 3), 77, np.uint8)
    draw_labels(canvas, [text] * len(boxes), np.array(boxes, np.int64).reshape(-1, 4))
    found = []
    for index in range(len(boxes)):
        y, x = np.nonzero((canvas == colour(index)).all(axis=2))
        found.append((x.min(), y.min(), x.max() + 1, y.max() + 1) if len(x) else None)
    return found


def overlap(one, other):
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


@pytest.mark.parametrize(
    "box", [(0, 0, 64, 48), (304, 232, 320, 240), (288, 0, 320, 240), (100, 0, 200, 240)]
)
def test_a_label_is_legible_inside_the_image_and_outside_its_box(box):
    (label,) = plates([box], 240, 320)
    x1, y1, x2, y2 = label
    assert min(x1, y1) >= 0 and x2 <= 320 and y2 <= 240
    assert y2 - y1 >= 10 and x2 - x1 > 45
    assert not overlap(label, box)


def test_a_label_covers_its_box_only_where_there_is_no_space_elsewhere():
    (label,) = plates([(0, 0, 320, 240)], 240, 320)
    assert label is not None and overlap(label, (0, 0, 320, 240))


@pytest.mark.parametrize(
    "boxes",
    [
        [(100, 100, 180, 160)] * 4,
        [(20, 40, 120, 140), (30, 42, 130, 150), (25, 38, 140, 120)],
        [(0, 0, 320, 240), (0, 0, 320, 240), (0, 0, 300, 230)],
    ],
)
def test_labels_of_overlapping_boxes_do_not_intersect(boxes):
    labels = plates(boxes, 240, 320)
    assert None not in labels
    assert not any(overlap(one, other) for one, other in itertools.combinations(labels, 2))


def test_labels_avoid_the_boxes_of_others():
    boxes = [(100, 100, 200, 180), (90, 30, 210, 98)]  # what is above the first box is the second one
    labels = plates(boxes, 240, 320)
    assert not any(overlap(label, box) for label in labels for box in boxes)


def test_labels_without_a_free_place_are_left_out():
    labels = plates([(10, 10, 30, 30)] * 40, 64, 100)
    assert labels[0] is not None and None in labels
    drawn = [label for label in labels if label]
    assert not any(overlap(one, other) for one, other in itertools.combinations(drawn, 2))


def test_the_height_of_labels_scales_with_the_image():
    heights = []
    for side in (160, 600, 1200, 2400):
        ((_, y1, _, y2),) = plates([(side // 4, side // 2, side // 2, side * 3 // 4)], side, side)
        heights.append(y2 - y1)
    assert heights[0] >= 10
    assert heights == sorted(set(heights))
    assert heights[2] / heights[1] == pytest.approx(2, rel=0.15)
    assert heights[3] / heights[2] == pytest.approx(2, rel=0.15)


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


def shares(boxes, labels):
    """The share of each box that labels cover, as labels never overlap."""
    covered = []
    for x1, y1, x2, y2 in boxes:
        hidden = sum(
            max(0, min(x2, b) - max(x1, a)) * max(0, min(y2, d) - max(y1, c))
            for a, c, b, d in filter(None, labels)
        )
        covered.append(hidden / ((x2 - x1) * (y2 - y1)))
    return covered


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [(128, 128), (240, 320), (480, 640)])
def test_labels_hide_no_small_object(size, seed):
    height, width = size
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.9, (25, 2))
    high = np.minimum(low + rng.choice([0.04, 0.1, 0.6], (25, 1), p=[0.6, 0.3, 0.1]), 1)
    boxes = (np.hstack([low, high]) * (width, height, width, height)).astype(int)
    labels = plates(boxes, height, width)
    assert not any(overlap(a, b) for a, b in itertools.combinations(filter(None, labels), 2))
    assert max(shares(boxes, labels)) <= 0.55
    assert np.mean(shares(boxes, labels)) < 0.1
    area = sum((c - a) * (d - b) for a, b, c, d in filter(None, labels))
    assert area < 0.26 * height * width
    assert sum(label is not None for label in labels) >= (4 if height == 128 else 20)


def test_a_small_object_next_to_a_large_one_is_not_hidden():
    # Every place around the large box is on others; those of the large ones lose only a small share.
    boxes = [(60, 60, 260, 180), (60, 48, 84, 58), (0, 0, 320, 47), (0, 182, 320, 240)]
    labels = plates(boxes, 240, 320)
    assert shares(boxes, labels)[1] == 0


@pytest.mark.parametrize("size", [(128, 128), (3000, 4000)])
def test_lines_leave_small_objects_visible(size):
    height, width = size
    image = np.full((*size, 3), 90, np.uint8)
    result = make([(0.5, 0.5, 0.5 + 5 / width, 0.5 + 5 / height)], *size)
    drawn = result.draw(image)
    x1, y1, x2, y2 = result.boxes[0]
    inside = drawn[y1:y2, x1:x2]
    unmixed = (inside == colour(0)).all(axis=2)
    assert not unmixed[1:-1, 1:-1].any()
    line = (drawn == colour(0)).all(axis=2)
    rows = np.flatnonzero(line[:, (x1 + x2) // 2])
    assert rows.min() < y1 or rows.max() > y2
