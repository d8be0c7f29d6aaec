"""Masks against pycocotools, torch's interpolation and the float64 oracle."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from yolact_runtime import masks

SIZES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([(1, 1), (1, 300), (300, 1), (150, 97)]),
)
SIDE = st.floats(-1.5, 2.5, width=32)
BOXES = st.one_of(
    st.tuples(SIDE, SIDE, SIDE, SIDE),
    st.sampled_from([(0, 0, 1, 1), (0.2, 0, 0.6, 1), (0, 0.3, 1, 0.5), (0.5, 0.5, 0.5, 0.5), (1, 1, 0, 0)]),
    st.just((-1e30, -1e30, 1e30, 1e30)),
)


def scene(seed, boxes, shape=(9, 7), depth=4):
    rng = np.random.default_rng(seed)
    prototypes = np.maximum(rng.normal(size=(*shape, depth)), 0).astype(np.float32)
    coefficients = np.tanh(rng.normal(size=(len(boxes), depth)) * 2).astype(np.float32)
    return coefficients, prototypes, np.array(boxes, np.float32).reshape(-1, 4)


def region_of(part, x, y, size):
    """The region whose mask is `part` (h, w) at column x and row y of an image of that size."""
    full = np.zeros(size, bool)
    full[y : y + part.shape[0], x : x + part.shape[1]] = part
    edges = np.cumsum(oracle.run_lengths(full))
    if len(edges) % 2:  # the last count is unset pixels
        edges = edges[:-1]
    height, width = part.shape if part.any() else (0, 0)
    return masks.Region(x, y, width, height, size[0], edges), full


def encode_whole(full):
    return [coco_mask.encode(np.asfortranarray(mask.view(np.uint8))) for mask in full]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.lists(BOXES, max_size=4), SIZES)
def test_masks_agree_with_the_oracle_and_run_lengths_with_pycocotools(seed, boxes, size):
    case = scene(seed, boxes)
    regions = masks.box_masks(*case, *size)
    full = masks.full_masks(regions, *size)
    soft = oracle.full_masks(*case, *size)
    assert full.shape == soft.shape == (len(boxes), *size)
    decided = np.abs(soft - 0.5) > 1e-5
    np.testing.assert_array_equal(full[decided], (soft > 0.5)[decided])
    rles = masks.encode(regions, *size)
    assert [(r["size"], r["counts"].encode()) for r in rles] == [
        (r["size"], r["counts"]) for r in encode_whole(full)
    ]
    assert masks.areas(regions).tolist() == full.sum(axis=(1, 2)).tolist()
    labels = np.where(full.any(axis=0), full.argmax(axis=0) + 1, 0) if boxes else np.zeros(size)
    np.testing.assert_array_equal(masks.label_map(regions, *size), labels)
    for mask, centroid in zip(full, masks.centroids(regions), strict=True):
        rows, columns = np.nonzero(mask)
        expected = (columns.mean() + 0.5, rows.mean() + 0.5) if len(rows) else (np.nan, np.nan)
        np.testing.assert_allclose(centroid, expected, rtol=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3))
def test_run_lengths_of_any_pattern(seed, height, width, below, beside):
    # Solid columns over the whole height make runs continue from one column to the next.
    rng = np.random.default_rng(seed)
    part = rng.random((height, width)) < rng.choice([0.0, 0.3, 0.9, 1.0])
    region, full = region_of(part, beside, below // 2, (height + below, width + 2 * beside))
    np.testing.assert_array_equal(masks.full_masks([region], *full.shape)[0], full)
    (rle,) = masks.encode([region], *full.shape)
    assert rle["counts"].encode() == encode_whole(full[None])[0]["counts"]


@pytest.mark.parametrize("size", [(1, 1), (8000, 50), (480, 640), (37, 2000)])
def test_enlarging_agrees_with_torch(size):
    boxes = [(0.1, 0.2, 0.7, 0.9), (0, 0, 1, 1), (-0.5, 0.4, 0.3, 1.5), (0.45, -1, 0.55, 2)]
    case = scene(3, boxes, shape=(138, 138))
    low = masks.assemble(*case)
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(low)[None], size, mode="bilinear", align_corners=False
    )[0].numpy()
    full = masks.full_masks(masks.box_masks(*case, *size), *size)
    # torch's float32 positions are off by up to 1e-5 of a cell.
    decided = np.abs(enlarged - 0.5) > 1e-5
    np.testing.assert_array_equal(full[decided], (enlarged > 0.5)[decided])
    assert decided.mean() > 0.999


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.lists(BOXES, min_size=1, max_size=3))
def test_assembled_masks_agree_with_the_oracle(seed, boxes):
    case = scene(seed, boxes)
    np.testing.assert_allclose(masks.assemble(*case), oracle.assemble(*case), atol=1e-6)


def test_a_box_outside_the_image_has_an_empty_mask():
    case = scene(0, [(1.5, 1.5, 2, 2), (-2, 0, -1, 1)])
    regions = masks.box_masks(np.abs(case[0]), case[1], case[2], 30, 20)
    assert not masks.full_masks(regions, 30, 20).any()
    assert [r["counts"] for r in masks.encode(regions, 30, 20)] == ["hb0", "hb0"]
    assert [masks.polygons(region) for region in regions] == [[], []]


def test_nothing_makes_nothing():
    case = scene(0, [])
    assert masks.box_masks(*case, 5, 6) == []
    assert masks.encode([], 5, 6) == []
    assert masks.full_masks([], 5, 6).shape == (0, 5, 6)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
def test_outlines_cover_exactly_the_mask(seed, height, width, x, y):
    rng = np.random.default_rng(seed)
    part = rng.random((height, width)) < 0.6
    size = (height + y + 2, width + x + 2)
    region, full = region_of(part, x, y, size)
    outlines = masks.polygons(region)
    assert bool(outlines) == bool(part.any())
    drawn = np.zeros(size, bool)
    for outline in outlines:
        assert len(outline) >= 6
        drawn |= coco_mask.decode(coco_mask.frPyObjects([outline], *size))[..., 0].astype(bool)
    # Holes are filled: compare with the mask whose holes are filled by growing the outside inwards.
    outside = np.pad(np.zeros(size, bool), 1, constant_values=True)
    blocked = np.pad(full, 1)
    for _ in range(sum(size)):
        grown = outside.copy()
        for axis in (0, 1):
            for step in (1, -1):
                grown |= np.roll(outside, step, axis)
        outside = grown & ~blocked
        outside[[0, -1]], outside[:, [0, -1]] = True, True
    np.testing.assert_array_equal(drawn, ~outside[1:-1, 1:-1])
