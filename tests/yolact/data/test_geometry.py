"""One geometric step against canvas, crop, resize and turns one after the other."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracle import downsample_masks

from yolact.data.geometry import Geometry
from yolact.data.mask_targets import MaskSampler
from yolact.data.segmentation import to_mask, to_region
from yolact_runtime.metadata import InputSize

SIZE = 96
# Height and width of the network's input.
SIZES = st.sampled_from([(SIZE, SIZE), (64, 112), (120, 56)])
FILL = np.array([104, 117, 124], np.float32)
turns = st.builds(dict, mirror=st.booleans(), flip=st.booleans(), turns=st.integers(0, 3))


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, Geometry]:
    """Height and width of an image, and a geometry whose crop meets it."""
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    x1, y1 = draw(st.integers(-150, width - 1)), draw(st.integers(-150, height - 1))
    x2 = draw(st.integers(max(x1, 0) + 1, width + 150))
    y2 = draw(st.integers(max(y1, 0) + 1, height + 150))
    return height, width, Geometry((x1, y1, x2, y2), **draw(turns))


def crop_of(image: np.ndarray, crop: tuple[int, int, int, int], fill: object = 0) -> np.ndarray:
    x1, y1, x2, y2 = (side + 400 for side in crop)
    canvas = np.empty((image.shape[0] + 800, image.shape[1] + 800, *image.shape[2:]), image.dtype)
    canvas[:] = fill
    canvas[400:-400, 400:-400] = image
    return canvas[y1:y2, x1:x2]


def turned(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    image = image[:, ::-1] if geometry.mirror else image
    image = image[::-1] if geometry.flip else image
    return np.rot90(image, geometry.turns)


def matrix(geometry: Geometry) -> np.ndarray:
    """(2, 3) from x, y, 1 in pixels to the unit square, y down: a product of elementary steps."""
    x1, y1, x2, y2 = geometry.crop
    steps = [np.array([[1 / (x2 - x1), 0, -x1 / (x2 - x1)], [0, 1 / (y2 - y1), -y1 / (y2 - y1)], [0, 0, 1]])]
    steps += [np.array([[-1, 0, 1], [0, 1, 0], [0, 0, 1]])] * geometry.mirror
    steps += [np.array([[1, 0, 0], [0, -1, 1], [0, 0, 1]])] * geometry.flip
    steps += [np.array([[0, 1, 0], [-1, 0, 1], [0, 0, 1]])] * geometry.turns
    return functools.reduce(lambda done, step: step @ done, steps)[:2]


def transformed(image: np.ndarray, geometry: Geometry, size: InputSize = SIZE) -> np.ndarray:
    part, _ = geometry.visible_pixels(image, FILL)
    return geometry.turn(geometry.resize(part, image.shape[:2], size, FILL))


@given(cases(), SIZES, st.integers(0, 99))
def test_images_equal_a_step_by_step_transform(
    case: tuple[int, int, Geometry], size: tuple[int, int], seed: int
) -> None:
    height, width, geometry = case
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    expected = turned(crop_of(image.astype(np.float32), geometry.crop, FILL), geometry)
    expected = cv2.resize(np.ascontiguousarray(expected), size[::-1])
    # warpAffine rounds coordinates: a few hundredths of a count.
    np.testing.assert_allclose(transformed(image, geometry, size), expected, atol=0.25)


def test_a_crop_outside_the_image_is_fill() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    for crop in ((30, 0, 50, 20), (-20, 0, 0, 20), (100, 100, 120, 130)):
        assert (transformed(image, Geometry(crop)) == FILL).all()


@given(cases(), st.data())
def test_boxes_follow_the_matrix(case: tuple[int, int, Geometry], data: st.DataObject) -> None:
    height, width, geometry = case
    x1, y1 = data.draw(st.floats(0, width)), data.draw(st.floats(0, height))
    x2, y2 = data.draw(st.floats(x1, width)), data.draw(st.floats(y1, height))
    ends = matrix(geometry) @ np.array([[x1, y1, 1], [x2, y2, 1]]).T  # (2 axes, 2 corners)
    expected = np.concatenate([ends.min(1), ends.max(1)]).clip(0, 1)
    np.testing.assert_allclose(geometry.boxes(np.array([[x1, y1, x2, y2]]))[0], expected, atol=1e-6)


# Regions that hardly have a pixel left say nothing about their bounds; a crop leaves many of those.
@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(cases(), SIZES, st.data())
def test_boxes_are_the_bounds_of_the_transformed_masks(
    case: tuple[int, int, Geometry], size: tuple[int, int], data: st.DataObject
) -> None:
    height, width, geometry = case
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    region = np.ones((bottom - top, right - left), np.uint8)
    mask = MaskSampler(geometry, size, [size])([(region, left, top)])[0][0]
    sides = np.array(size[::-1] * 2)
    x1, y1, x2, y2 = geometry.boxes(np.array([[left, top, right, bottom]], np.float64))[0] * sides
    enlarged = max(size[::-1][axis] / geometry.turned_sides[axis] for axis in (0, 1))
    assume(min(x2 - x1, y2 - y1) > 3 * max(enlarged, 1))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    bounds = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    # A pixel belongs to the mask by its centre; where cv2.resize enlarges, its rounding eats at corners.
    np.testing.assert_allclose(bounds, [x1, y1, x2, y2], atol=1.01 + 0.15 * enlarged)


@given(cases())
def test_mirroring_and_flipping_twice_and_four_turns_change_nothing(case: tuple[int, int, Geometry]) -> None:
    grid = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    for geometry, times in (
        (Geometry((0, 0, 9, 9), mirror=True), 2),
        (Geometry((0, 0, 9, 9), flip=True), 2),
        (Geometry((0, 0, 9, 9), turns=1), 4),
    ):
        turned_grid = grid
        for _ in range(times):
            turned_grid = geometry.turn(turned_grid)
        assert (turned_grid == grid).all()
    height, width, geometry = case
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    mirrored = Geometry(geometry.crop, not geometry.mirror, geometry.flip)
    once = Geometry(geometry.crop, geometry.mirror, geometry.flip)
    assert (transformed(image, mirrored)[:, ::-1] == transformed(image, once)).all()


polygons = st.lists(
    st.lists(st.floats(-30, 170), min_size=6, max_size=20).filter(lambda p: len(p) % 2 == 0),
    min_size=1,
    max_size=3,
)


@given(cases(), polygons, SIZES, st.sampled_from([(4, 8), (1, 2), (7.3, 13.7)]))
def test_mask_targets_equal_a_step_by_step_transform(
    case: tuple[int, int, Geometry],
    segmentation: list[list[float]],
    size: tuple[int, int],
    parts: tuple[float, float],
) -> None:
    height, width, geometry = case
    full = crop_of(to_mask(segmentation, height, width), geometry.crop)
    resized = cv2.resize(turned(full, geometry).copy(), size[::-1])
    region = to_region(segmentation, height, width, geometry.crop)
    shapes = [(round(size[0] / part), round(size[1] / part)) for part in parts]
    for result, shape in zip(MaskSampler(geometry, size, shapes)([region]), shapes, strict=True):
        expected = downsample_masks(resized[None], shape)[0].numpy()
        # Where the blend of the last step is 0.5, float32 may fall on either side.
        assert (result[0] != expected).sum() <= 2


def test_no_masks() -> None:
    result = MaskSampler(Geometry.whole(20, 30), SIZE, [(24, 24), (12, 12)])([])
    assert [masks.shape for masks in result] == [(0, 24, 24), (0, 12, 12)]
