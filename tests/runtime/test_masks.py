"""Masks against pycocotools, torch's interpolation and the float64 oracle."""

import math

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from yolact_runtime import masks
from yolact_runtime.preprocess import bilinear_axis

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


def along_columns(coefficients, prototypes, box, height, width):
    """The edges of one mask, from the values at every prototype row of every column of the image."""
    rows, columns = prototypes.shape[:2]
    x0, y0, x1, y1 = masks.crop_bounds(box[None], rows, columns)[0]
    cells = np.zeros((rows + 2, columns), np.float32)  # a row of zeros above and below
    if x1 > x0 and y1 > y0:
        with np.errstate(over="ignore"):
            cells[1 + y0 : 1 + y1, x0:x1] = 1 / (1 + np.exp(-(prototypes[y0:y1, x0:x1] @ coefficients)))
    left, right, weight = bilinear_axis(columns, width)
    lines = cells[:, left] + (cells[:, right] - cells[:, left]) * weight
    runs = []
    for x, line in enumerate(lines.T):
        ends = []
        for cell in np.flatnonzero((line[1:] > 0.5) != (line[:-1] > 0.5)):
            low, high, row = line[cell], line[cell + 1], int(cell) - 1
            at = (row + float((np.float32(0.5) - low) / (high - low)) + 0.5) * (height / rows) - 0.5
            # Values are constant beyond the outermost cells.
            ends.append(-0.5 if row < 0 else float(height) if row == rows - 1 else at)
        for start, stop in zip(ends[0::2], ends[1::2], strict=True):
            start, stop = x * height + math.floor(start) + 1, x * height + math.ceil(stop)
            if stop > start:
                if runs and runs[-1] == start:
                    runs.pop()
                    start = runs.pop()
                runs += [start, stop]
    return runs


FAINT = [1e-9, 3e-8, 6e-8, 1e-7, 1e-6, 1.0, 40.0]  # sigmoids of the first ones are 0.5, or the next above


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(BOXES, min_size=1, max_size=3),
    SIZES,
    st.sampled_from(FAINT),
    st.sampled_from([(1, 1), (1, 6), (9, 1), (2, 3), (12, 11)]),
)
def test_outlines_are_those_of_all_values(seed, boxes, size, scale, shape):
    """Every edge is the same: where nothing is computed, nothing is."""
    coefficients, prototypes, corners = scene(seed, boxes, shape)
    prototypes = np.round(prototypes) if seed % 3 == 0 else prototypes  # equal cells, and zeros
    coefficients *= np.float32(scale)
    for region, row, box in zip(
        masks.box_masks(coefficients, prototypes, corners, *size), coefficients, corners, strict=True
    ):
        assert region.edges.tolist() == along_columns(row, prototypes, box, *size)


@settings(max_examples=300, deadline=None)
@given(
    st.floats(0, 1, width=32), st.floats(0, 1, width=32), st.integers(1, 60), st.integers(1, 900),
    st.booleans(),
)  # fmt: skip
def test_rounded_values_lie_on_the_side_of_both_cells(one, other, cells, pixels, above):
    """What the outlines rely on: between two cells on the same side of 0.5, no value is on the other."""
    half = np.float32(0.5)
    pair = np.array([one, other], np.float32)
    pair = np.maximum(pair, np.nextafter(half, np.float32(1))) if above else np.minimum(pair, half)
    weight = bilinear_axis(cells, pixels)[2]
    values = pair[0] + (pair[1] - pair[0]) * weight
    assert values.dtype == np.float32 and ((values > half) == above).all()


@pytest.mark.parametrize(("cells", "pairs"), [(1, 1), (200, 7), (1 << 20, 50)])
def test_instances_are_processed_in_parts(monkeypatch, cells, pairs):
    boxes = [(0.1, 0.2, 0.7, 0.9), (2, 2, 3, 3), (0, 0, 1, 1), (0.5, 0.5, 0.5, 0.5), (-1, 0.4, 2, 0.45)]
    case = scene(5, boxes, shape=(20, 30))
    expected = masks.box_masks(*case, 97, 150)
    monkeypatch.setattr("yolact_runtime.mask_edges._CELLS", cells)
    monkeypatch.setattr("yolact_runtime.mask_edges._PAIRS", pairs)
    for region, wanted in zip(masks.box_masks(*case, 97, 150), expected, strict=True):
        assert region[:5] == wanted[:5]
        np.testing.assert_array_equal(region.edges, wanted.edges)
    assert len(expected[0].edges) and not len(expected[1].edges) and expected[1][:4] == (0, 0, 0, 0)
