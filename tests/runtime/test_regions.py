"""Masks as edges of runs against dense masks and pycocotools."""

import numpy as np
import pytest
from exact_engine import region_of
from pycocotools import mask as coco_mask

from yolact_runtime import masks, regions
from yolact_runtime.masks import Region

EMPTY = Region(0, 0, 0, 0, 30, np.empty(0, np.int64))


def random_mask(rng, height, width):
    """Blocks, some of which fill columns from top to bottom."""
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 5)):
        y, x = rng.integers(height), rng.integers(width)
        mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, 8)] = True
    if rng.random() < 0.3:
        mask[:, rng.integers(width) :] = True
    return mask & (rng.random(mask.shape) < rng.choice([1, 1, 0.8]))


def masks_of(seed, height=30, width=40, count=2):
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        mask = random_mask(rng, height, width)
        found += [mask] if mask.any() else []
    return found


def dense(region, height, width):
    return masks.full_masks([region], height, width)[0]


@pytest.mark.parametrize("seed", range(40))
def test_areas_and_unions(seed):
    one, two = masks_of(seed)
    first, second = region_of(one), region_of(two)
    assert regions.area(first) == one.sum()
    joined = regions.union([first, second])
    np.testing.assert_array_equal(dense(joined, 30, 40), one | two)
    assert (np.diff(joined.edges) > 0).all()
    (rle,) = masks.encode([joined], 30, 40)
    expected = coco_mask.merge([coco_mask.encode(np.asfortranarray(m, np.uint8)) for m in (one, two)])
    assert rle["counts"] == expected["counts"].decode()
    assert regions.shared_area(first, second) == (one & two).sum()
    left, top, right, bottom = 5, 3, 22, 21
    assert regions.area_within(first, (left, top, right, bottom)) == one[top:bottom, left:right].sum()
    assert regions.area_within(first, (0, 0, 40, 30)) == one.sum()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("height", "x", "y"), [(30, 0, 0), (30, 7, 0), (55, 0, 25), (55, 9, 11)])
def test_a_mask_of_a_tile_moves_into_its_image(seed, height, x, y):
    (mask,) = masks_of(seed, count=1)
    moved = regions.move(region_of(mask), x, y, height)
    expected = np.zeros((height, 60), bool)
    expected[y : y + 30, x : x + 40] = mask
    for value, wanted in zip(moved, region_of(expected), strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_empty_masks():
    (mask,) = masks_of(1, count=1)
    some = region_of(mask)
    assert (
        regions.area(EMPTY)
        == regions.shared_area(EMPTY, some)
        == regions.area_within(EMPTY, (1, 1, 5, 5))
        == 0
    )
    np.testing.assert_array_equal(dense(regions.union([EMPTY, some]), 30, 40), mask)
    assert regions.union([EMPTY, EMPTY]).width == 0
    assert len(regions.move(EMPTY, 4, 5, 60).edges) == 0


def test_offsets_beyond_32_bits():
    """An image of 70,000 x 70,000 has more pixels than 32 bits count."""
    region = regions.move(region_of(np.ones((4, 3), bool)), 69_000, 5, 70_000)
    assert region.edges[0] == 69_000 * 70_000 + 5 > 2**32
    assert regions.area(region) == 12 == regions.area_within(region, (69_000, 0, 70_000, 70_000))
    assert region.mask.all() and region.mask.shape == (4, 3)
