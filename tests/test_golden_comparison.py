"""The comparison with golden detections accepts what rounding decides, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from golden import assert_pixel_boxes, match_rows, strided


def make_golden(scores: list[float], coordinate: float = 40.5) -> dict[str, np.ndarray]:
    """Golden detections at (10i, `coordinate`) of an image 100 x 100, all of class 1."""
    n = len(scores)
    exact = np.array([[10.0 * i + 0.5, coordinate, 10.0 * i + 8.5, 90.5] for i in range(n)]).reshape(-1, 4)
    return {
        "img_hw": np.array([100, 100]),
        "fast_det_class": np.ones(n, np.int64),
        "fast_det_score": np.array(scores, np.float64),
        "fast_det_box": exact / 100,
        "fast_pp_box": np.floor(exact).astype(np.int64),
    }


def find(golden: dict[str, np.ndarray], order: list[int]) -> np.ndarray:
    """The golden rows matched by detections that are the golden ones in this order; scores stay sorted."""
    classes, scores, boxes = (golden[f"fast_det_{name}"] for name in ("class", "score", "box"))
    return match_rows(golden, "fast_det", classes[order], scores, boxes[order])


@pytest.mark.parametrize("gap", [0, 1.9e-5])
def test_rows_that_tie_may_swap(gap: float) -> None:
    golden = make_golden([0.9, 0.5 + gap, 0.5, 0.1])
    assert find(golden, [0, 1, 2, 3]).tolist() == [0, 1, 2, 3]
    assert find(golden, [0, 2, 1, 3]).tolist() == [0, 2, 1, 3]


def test_three_rows_that_tie_may_rotate() -> None:
    assert find(make_golden([0.5, 0.5, 0.5]), [1, 2, 0]).tolist() == [1, 2, 0]


@pytest.mark.parametrize("gap", [2.1e-5, 1e-4])
def test_rows_that_do_not_tie_keep_their_order(gap: float) -> None:
    with pytest.raises(AssertionError, match=r"rows \[1, 2\] match no golden row"):
        find(make_golden([0.9, 0.5 + gap, 0.5]), [0, 2, 1])


def test_ties_do_not_chain() -> None:
    """The ends of a chain of ties are further apart than a tie."""
    with pytest.raises(AssertionError, match="match no golden row"):
        find(make_golden([0.50003, 0.500015, 0.5]), [2, 1, 0])


@pytest.mark.parametrize(
    ("name", "row", "change"), [("class", 1, 1), ("box", 1, 2e-3), ("score", 1, 6e-4), ("score", 1, -6e-4)]
)
def test_a_wrong_row_is_refused(name: str, row: int, change: float) -> None:
    golden = make_golden([0.9, 0.5, 0.5, 0.1])
    found = {key: golden[f"fast_det_{key}"].copy() for key in ("class", "score", "box")}
    found[name][row] += np.asarray(change, found[name].dtype)
    with pytest.raises(AssertionError):
        match_rows(golden, "fast_det", found["class"], found["score"], found["box"])


def test_a_golden_row_is_found_once() -> None:
    with pytest.raises(AssertionError, match="match"):
        find(make_golden([0.5, 0.5, 0.5]), [0, 0, 2])


def test_a_row_too_few_is_refused() -> None:
    golden = make_golden([0.5, 0.4])
    with pytest.raises(AssertionError):
        match_rows(golden, "fast_det", np.ones(1), np.array([0.5]), golden["fast_det_box"][:1])


@pytest.mark.parametrize("coordinate", [39.9995, 40.0005])
def test_pixels_may_differ_where_rounding_decides(coordinate: float) -> None:
    golden = make_golden([0.5], coordinate)
    for value in (round(coordinate) - 1, round(coordinate)):
        boxes = golden["fast_pp_box"].copy()
        boxes[0, 1] = value
        assert_pixel_boxes(boxes, golden, "fast")


@pytest.mark.parametrize(
    ("coordinate", "value"),
    [
        (40.5, 41), (40.5, 39),  # far from a whole number
        (39.998, 40), (40.002, 39),  # not near enough
        (39.9995, 38), (40.0005, 41),  # the other neighbour
        (39.9995, 41), (40.0005, 38),  # two away
    ],
)  # fmt: skip
def test_pixels_may_not_differ_elsewhere(coordinate: float, value: int) -> None:
    golden = make_golden([0.5], coordinate)
    boxes = golden["fast_pp_box"].copy()
    boxes[0, 1] = value
    with pytest.raises(AssertionError, match=f"row 0, coordinate 1: {value}, expected"):
        assert_pixel_boxes(boxes, golden, "fast")


def test_pixels_follow_the_rows() -> None:
    golden = make_golden([0.5, 0.5])
    assert_pixel_boxes(golden["fast_pp_box"][[1, 0]], golden, "fast", np.array([1, 0]))
    with pytest.raises(AssertionError):
        assert_pixel_boxes(golden["fast_pp_box"][[1, 0]], golden, "fast")


def test_golden_pixels_are_clamped_to_the_image() -> None:
    golden = make_golden([0.5], -3.5)
    boxes = golden["fast_pp_box"].copy()
    boxes[0, 1] = 0
    assert_pixel_boxes(boxes, golden, "fast")


def test_strides_are_in_the_key() -> None:
    golden = {"loc_stat": np.zeros(5), "loc_s50": np.ones(3), "conf_loc": np.zeros(1), "boxes": np.ones(2)}
    assert strided(golden, "loc")[1] == 50 and strided(golden, "boxes")[1] == 1
