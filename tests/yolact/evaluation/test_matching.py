"""Greedy pairing against a restatement of COCO's loop, and IoU with empty instances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from yolact.evaluation.matching import match_instances, pairwise_iou

SIMILARITIES = arrays.arrays(
    np.float64,
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    elements=st.sampled_from([-np.inf, -2.5, 0.0, 0.25, 0.5, 0.5000001, 1.0]),
)


@given(SIMILARITIES)
def test_rows_choose_in_their_order(similarity: np.ndarray) -> None:
    free, expected = set(range(similarity.shape[1])), []
    for row, values in enumerate(similarity.tolist()):
        possible = [column for column in sorted(free) if np.isfinite(values[column])]
        if possible:
            best = max(possible, key=lambda column: values[column])  # max gives the first of equals
            free.remove(best)
            expected.append((row, best))
    assert match_instances(similarity) == expected


@given(SIMILARITIES)
def test_best_pairs_go_first(similarity: np.ndarray) -> None:
    left, expected = similarity.copy(), []
    while np.isfinite(left).any():
        row, column = divmod(int(left.argmax()), left.shape[1])
        expected.append((row, column))
        left[row], left[:, column] = -np.inf, -np.inf
    assert match_instances(similarity, best_first=True) == sorted(expected)


def test_the_orders_differ_where_a_later_row_is_more_similar() -> None:
    similarity = np.array([[0.6, 0.5], [0.9, 0.1]])
    assert match_instances(similarity) == [(0, 0), (1, 1)]
    assert match_instances(similarity, best_first=True) == [(0, 1), (1, 0)]


def test_iou_of_masks_and_boxes() -> None:
    square = np.zeros((8, 8), np.uint8)
    square[:4, :4] = 1
    half, empty = square.copy(), np.zeros_like(square)
    half[:, 2:] = 0
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in (square, half, empty)]
    np.testing.assert_allclose(pairwise_iou(rles, rles), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(pairwise_iou(rles[:2], rles[:2], crowd=True), [[1, 0.5], [1, 1]])
    boxes = np.array([[0.0, 0, 4, 4], [0, 0, 2, 4], [1, 1, 0, 0]])
    np.testing.assert_allclose(pairwise_iou(boxes, boxes), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_match(shape: tuple[int, int]) -> None:
    assert match_instances(np.zeros(shape)) == []
    assert pairwise_iou([[0, 0, 1, 1]] * shape[0], [[0, 0, 1, 1]] * shape[1]).shape == shape
