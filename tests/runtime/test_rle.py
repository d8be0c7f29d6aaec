"""Masks from RLE, against pycocotools."""

import numpy as np
import pytest
from mask_scenes import scene
from pycocotools import mask as coco_mask

from yolact_runtime.masks import encode
from yolact_runtime.rle import inner_bounds, region_of


def masks():
    rng = np.random.default_rng(5)
    yield from scene(1).masks
    for height, width in [(1, 1), (1, 9), (7, 1), (13, 17)]:
        for share in (0.0, 0.2, 0.5, 0.9, 1.0):
            yield rng.random((height, width)) < share


def test_regions_are_the_masks_in_their_smallest_rectangle():
    for mask in masks():
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        region = region_of({"size": list(mask.shape), "counts": rle["counts"].decode()})
        assert encode([region], *mask.shape)[0]["counts"] == rle["counts"].decode()
        assert [region.x, region.y, region.width, region.height] == coco_mask.toBbox(rle).tolist()
        if mask.any():
            full = np.zeros_like(mask)
            full[region.y :, region.x :][: region.height, : region.width] = region.mask
            np.testing.assert_array_equal(full, mask)


def test_inner_bounds_are_the_runs_of_the_cropped_mask():
    for mask in masks():
        region = region_of(coco_mask.encode(np.asfortranarray(mask, np.uint8)))
        if mask.any():
            cropped = coco_mask.encode(np.asfortranarray(region.mask, np.uint8))
            own = {
                "size": [region.height, region.width],
                "counts": np.diff(inner_bounds(region), prepend=0).tolist(),
            }
            assert coco_mask.frPyObjects(own, *own["size"])["counts"] == cropped["counts"]


@pytest.mark.parametrize("counts", [[], [3], [3, 4], [20, 5]])
def test_runs_that_do_not_add_up_are_refused(counts):
    with pytest.raises(ValueError, match=r"do not add up to 4 x 5 pixels"):
        region_of({"size": [4, 5], "counts": counts})


def test_empty_runs_inside_a_mask_are_none():
    region = region_of({"size": [4, 5], "counts": [2, 3, 0, 1, 4, 0, 10]})
    assert region.edges.tolist() == [2, 6] and region.width == 2 and region.height == 4
