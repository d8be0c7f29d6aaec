"""Outlines for people to edit."""

import sys

import cv2
import numpy as np
import pytest
from mask_scenes import scene
from pycocotools import mask as coco_mask

from yolact_runtime import YolactError
from yolact_runtime.exchange.instances import Instance, check_tolerance, instances_of


def drawn(outlines, height, width):
    """The mask of polygons, by pycocotools."""
    rles = coco_mask.frPyObjects([one.ravel().tolist() for one in outlines], height, width)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool)


def filled(mask):
    """A mask without its holes."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED).astype(bool)


@pytest.mark.parametrize("seed", range(3))
def test_the_rectangle_is_the_smallest_around_the_mask(seed):
    # Those of regions may have rows and columns more, in which a mask has been at the prototypes' resolution.
    result = scene(seed)
    for region, mask, rle in zip(result.regions, result.masks, result.rles, strict=True):
        wide = region._replace(x=0, y=0, width=mask.shape[1], height=mask.shape[0])
        found = Instance("x", 1.0, wide).region(*mask.shape)
        assert list(found[:4]) == (coco_mask.toBbox(rle).tolist() if mask.any() else [0, 0, 0, 0])
        np.testing.assert_array_equal(found.mask, mask[found.window])


@pytest.mark.parametrize("tolerance", [0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_outlines_are_within_their_tolerance_of_the_mask(seed, tolerance):
    result = scene(seed)
    exact = points = 0
    for region, mask in zip(result.regions[:-1], result.masks[:-1], strict=True):
        outlines = Instance("x", 1.0, region).outlines(tolerance)
        changed = drawn(outlines, *mask.shape) != filled(mask)
        # How far each pixel's centre is from the nearest one of the other kind: half a pixel from the border.
        padded = np.pad(filled(mask).astype(np.uint8), 1)
        far = [cv2.distanceTransform(one, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for one in (padded, 1 - padded)]
        distance = np.maximum(*far)[1:-1, 1:-1]
        assert distance[changed].max(initial=0) <= tolerance + 1
        assert tolerance or not changed.any()
        exact += sum(map(len, Instance("x", 1.0, region).outlines(0)))
        points += sum(map(len, outlines))
        assert all(len(one) >= 3 for one in outlines)
    assert points < exact / 3 if tolerance >= 1 else points <= exact


def test_entries_of_results_give_the_same_instances():
    result = scene(2, tracks=np.array([4, 9, 1, -1, 2, 3]))
    names = dict(zip(result.class_ids, result.class_names, strict=True))
    for polygons in (False, True):
        found = instances_of(result.to_coco(1, polygons=polygons), names)
        assert [one.label for one in found] == result.names[:-1]  # the last mask is empty
        assert [one.track_id for one in found] == [4, 9, 1, None, 2]
        for one, region, mask in zip(found, result.regions, result.masks, strict=False):
            expected = Instance("x", 1.0, region)
            for a, b in zip(one.outlines(1.0), expected.outlines(1.0), strict=True):
                np.testing.assert_array_equal(a, b)
            back = one.region(result.height, result.width)
            full = np.zeros_like(mask)
            full[back.y : back.y + back.height, back.x : back.x + back.width] = back.mask
            np.testing.assert_array_equal(full, filled(mask) if polygons else mask)


@pytest.mark.parametrize("tolerance", [-1, 100.5, float("nan"), float("inf")])
def test_wrong_tolerances_are_refused(tolerance):
    with pytest.raises(YolactError, match=r"it must be in 0\.\.100 pixels"):
        check_tolerance(tolerance)
    with pytest.raises(YolactError):
        scene().to_labelme("a.png", tolerance=tolerance)
    with pytest.raises(YolactError):
        scene().to_label_studio(polygons=True, tolerance=tolerance)


@pytest.mark.parametrize("package", ["supervision", "fiftyone"])
def test_a_missing_package_is_one_line_that_installs_it(package, monkeypatch):
    for name in [one for one in sys.modules if one.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(YolactError) as caught:
        getattr(scene(), f"to_{package}")()
    assert str(caught.value).startswith(f"Result.to_{package}() (no module '{package}') needs packages")
    assert f"[{package}]" in str(caught.value) and "pip install" in str(caught.value)
