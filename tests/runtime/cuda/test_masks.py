"""Mask kernels, run on the CPU, against the float64 oracle and pycocotools."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracle
import pytest
from cuda_on_cpu import FORWARD, REVERSED, run
from golden import strided
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from shared_data import reference_files

from yolact_runtime import masks
from yolact_runtime.cuda.plans.masks import MaskShapes, mask_plan, read_regions
from yolact_runtime.cuda.plans.plan import SOURCE_FOLDER
from yolact_runtime.errors import UsageError, YolactError

SIDE = st.floats(-1.5, 2.5, width=32)
BOXES = st.one_of(
    st.tuples(SIDE, SIDE, SIDE, SIDE),
    st.sampled_from([(0, 0, 1, 1), (0.2, 0, 0.6, 1), (0, 0.3, 1, 0.5), (0.5, 0.5, 0.5, 0.5), (1, 1, 0, 0)]),
    st.sampled_from([(-1e30, -1e30, 1e30, 1e30), (1.5, 1.5, 2, 2), (-2, 0, -1, 1), (np.nan, 0, 1, np.nan)]),
)
SIZE = st.one_of(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from([(1, 1), (1, 200), (200, 1), (32, 32), (64, 33), (96, 31)]),
)


def unpack_bits(bits: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """The masks of each image from the output of the "bits" plan.

    Args:
        bits: (N, K, words, width) uint32.
        sizes: (N, 2) height and width of each image.

    Returns:
        (K, height, width) bool for each image.
    """
    batch, detections, words, width = bits.shape
    octets = bits.astype("<u4").view(np.uint8).reshape(batch, detections, words, width, 4)
    octets = octets.transpose(0, 1, 2, 4, 3).reshape(batch, detections, words * 4, width)  # 8 rows in each
    full = np.unpackbits(octets, axis=2, bitorder="little").view(bool)  # (N, K, 32 words, width)
    return [mask[:, :height, :across] for mask, (height, across) in zip(full, sizes.tolist(), strict=True)]


def make(seed: int, boxes: list[list[tuple]], shapes: MaskShapes) -> dict[str, np.ndarray]:
    """Inputs with these boxes in each image; rows past the count hold values that must not be used."""
    rng = np.random.default_rng(seed)
    size = (shapes.batch, shapes.rows, shapes.columns, shapes.coefficients)
    prototypes = np.maximum(rng.normal(size=size), 0).astype(shapes.prototype_dtype)
    coefficients = np.tanh(rng.normal(size=(shapes.batch, shapes.detections, shapes.coefficients)) * 2)
    padded = np.tile(np.array([0, 0, 1, 1], np.float32), (shapes.batch, shapes.detections, 1))
    for row, some in zip(padded, boxes, strict=True):
        row[: len(some)] = np.array(some, np.float32).reshape(-1, 4)
    return {
        "boxes": padded,
        "kept_coefficients": coefficients.astype(np.float32),
        "count": np.array([len(some) for some in boxes], np.int32),
        "prototypes": prototypes,
    }


def soft(inputs: dict[str, np.ndarray], n: int, size: tuple[int, int]) -> np.ndarray:
    live = slice(inputs["count"][n])
    with np.errstate(invalid="ignore"):
        boxes = inputs["boxes"][n, live]
        return oracle.full_masks(inputs["kept_coefficients"][n, live], inputs["prototypes"][n], boxes, *size)


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    decided = ~(np.abs(expected - 0.5) < 1e-5)
    np.testing.assert_array_equal(got[decided], (expected > 0.5)[decided])


def pack(full: np.ndarray) -> list[dict]:
    return [coco_mask.encode(np.asfortranarray(mask.view(np.uint8))) for mask in full]


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(SIZE, st.lists(BOXES, max_size=3)), min_size=1, max_size=2),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([(4, "float32"), (8, "float16"), (3, "float32")]),
    st.integers(0, 40),
)
def test_bits_and_rles(seed, images, rows, columns, kind, margin):
    sizes = [size for size, _ in images]
    height, width = (max(sides) + margin for sides in zip(*sizes, strict=True))
    shapes = MaskShapes(len(images), 3, kind[0], rows, columns, height, width, kind[1])
    shapes = dataclasses.replace(shapes, edge_capacity=shapes.detections * shapes.most_edges)
    inputs = make(seed, [boxes for _, boxes in images], shapes)
    inputs["sizes"] = np.array(sizes, np.int32)
    out = run(mask_plan(shapes), inputs)
    bits = unpack_bits(run(mask_plan(shapes, "bits"), inputs)["bits"], inputs["sizes"])
    found = read_regions(inputs["count"], inputs["sizes"], out["regions"], out["offsets"], out["edges"])
    for n, size in enumerate(sizes):
        live = inputs["count"][n]
        assert_same_bits(bits[n][:live], soft(inputs, n, size))
        assert not bits[n][live:].any()
        expected = pack(bits[n][:live])
        assert [rle["counts"].encode() for rle in masks.encode(found[n], *size)] == [
            rle["counts"] for rle in expected
        ]
        np.testing.assert_array_equal(masks.full_masks(found[n], *size), bits[n][:live])
    assert (np.diff(out["offsets"]) <= shapes.most_edges).all()
    again = run(mask_plan(shapes), inputs, REVERSED)
    for name, value in out.items():
        assert value.tobytes() == again[name].tobytes(), name


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.lists(st.lists(BOXES, max_size=20), min_size=1, max_size=2),
    st.integers(1, 70),
    st.integers(1, 40),
)
def test_masks_at_prototype_size(seed, boxes, rows, columns):
    shapes = MaskShapes(len(boxes), 20, 4, rows, columns, 1, 1)
    inputs = make(seed, boxes, shapes)
    out = run(mask_plan(shapes, "masks"), inputs)["masks"]
    for n, count in enumerate(inputs["count"]):
        live = inputs["kept_coefficients"][n, :count], inputs["prototypes"][n], inputs["boxes"][n, :count]
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(out[n, :count], oracle.assemble(*live), atol=1e-6)
        assert not out[n, count:].any()
    assert out.tobytes() == run(mask_plan(shapes, "masks"), inputs, REVERSED)["masks"].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_coefficients_that_are_no_numbers_leave_the_other_masks_alone(value):
    shapes = MaskShapes(1, 3, 4, 20, 20, 60, 50)
    inputs = make(0, [[(0, 0, 1, 1)] * 3], shapes)
    inputs["sizes"] = np.array([(60, 50)], np.int32)
    whole = unpack_bits(run(mask_plan(shapes, "bits"), inputs)["bits"], inputs["sizes"])[0]
    inputs["kept_coefficients"][0, 1, 0] = value
    inputs["prototypes"][...] += 0.1
    inputs["prototypes"][...] -= 0.1
    out = unpack_bits(run(mask_plan(shapes, "bits"), inputs)["bits"], inputs["sizes"])[0]
    assert whole[1].any()
    assert (out[[0, 2]] == whole[[0, 2]]).mean() > 0.999
    if not value > 0:
        assert not out[1].any()


def test_a_mask_over_everything_is_one_run():
    shapes = MaskShapes(1, 2, 4, 10, 10, 70, 45)
    inputs = make(0, [[(0, 0, 1, 1)] * 2], shapes)
    inputs["kept_coefficients"][...] = 5
    inputs["prototypes"][...] = 1
    inputs["sizes"] = np.array([(70, 45)], np.int32)
    out = run(mask_plan(shapes), inputs)
    assert out["offsets"].tolist() == [[0, 2, 4]]
    assert out["edges"][0, :4].tolist() == [0, 70 * 45, 0, 70 * 45]


def test_one_half_is_not_set():
    shapes = MaskShapes(1, 1, 4, 9, 7, 40, 50)
    inputs = make(0, [[(0, 0, 1, 1)]], shapes)
    inputs["prototypes"][...] = 0  # as ReLU leaves most of them
    inputs["sizes"] = np.array([(37, 50)], np.int32)
    assert not run(mask_plan(shapes, "bits"), inputs)["bits"].any()


def test_edges_that_do_not_fit_are_reported():
    boxes = [[(0, 0, 0.5, 0.5), (0, 0, 1, 1), (0.2, 0.2, 0.8, 0.9)]]
    whole = MaskShapes(1, 3, 4, 20, 20, 60, 50)
    inputs = make(1, boxes, whole)
    inputs["sizes"] = np.array([(60, 50)], np.int32)
    expected = run(mask_plan(whole), inputs)
    first, second, total = expected["offsets"][0, 1:].tolist()
    assert 0 < first < second < total
    shapes = dataclasses.replace(whole, edge_capacity=second - 1)
    out = run(mask_plan(shapes), inputs)
    assert out["offsets"].tolist() == expected["offsets"].tolist()
    np.testing.assert_array_equal(out["edges"][0, :first], expected["edges"][0, :first])
    assert (out["edges"][0, first:] == -1).all()  # nothing was written there
    with pytest.raises(YolactError, match=f"image 0 have {total} edges.*edge_capacity={total}"):
        read_regions(inputs["count"], inputs["sizes"], out["regions"], out["offsets"], out["edges"])


@pytest.mark.parametrize("path", reference_files("golden_*.npz"), ids=lambda path: path.stem)
def test_prototypes_of_the_reference_network(path):
    golden = np.load(path)
    prototypes = strided(golden, "proto")[0]
    number = min(12, len(golden["fast_det_box"]))
    boxes, coefficients = golden["fast_det_box"][:number], golden["fast_det_mask"][:number]
    height, width = golden["img_hw"].tolist()
    shapes = MaskShapes(1, number, prototypes.shape[2], *prototypes.shape[:2], height, width)
    inputs = {
        "boxes": boxes[None].astype(np.float32),
        "kept_coefficients": coefficients[None].astype(np.float32),
        "count": np.array([number], np.int32),
        "prototypes": prototypes[None],
        "sizes": np.array([(height, width)], np.int32),
    }
    out = run(mask_plan(shapes), inputs, FORWARD)
    (found,) = read_regions(inputs["count"], inputs["sizes"], out["regions"], out["offsets"], out["edges"])
    full = masks.full_masks(found, height, width)
    expected = soft(inputs, 0, (height, width))
    assert expected.shape == full.shape and full.any()
    assert (full == (expected > 0.5)).mean() >= 0.9999
    assert_same_bits(full, expected)


def test_the_barrier_is_needed():
    shapes = MaskShapes(1, 40, 4, 20, 40, 1, 1)
    inputs = make(1, [[(0, 0, 1, 1), (0.3, 0.3, 0.6, 0.6)] * 20], shapes)
    lines = (SOURCE_FOLDER / "masks.cu").read_text().splitlines()
    (line,) = (number for number, text in enumerate(lines, 1) if "__syncthreads" in text)
    plan = mask_plan(shapes, "masks")
    whole = run(plan, inputs)["masks"]
    without = [
        run(plan, inputs, order, skip_barrier=("masks.cu", line))["masks"] for order in (FORWARD, REVERSED)
    ]
    assert any((masks != whole).any() for masks in without)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch 1..65535, not 0"),
        ({"coefficients": 65}, "coefficients 1..64, not 65"),
        ({"prototype_dtype": "int8"}, "float32 or float16, not int8"),
        ({"edge_capacity": -1}, "edge_capacity 1..2147483647, not -1"),
        ({"detections": 1024, "height": 32768, "width": 32768}, "2\\*\\*31"),
    ],
)
def test_limits(change, message):
    sizes = {"batch": 1, "detections": 2, "coefficients": 32, "rows": 138, "columns": 138}
    with pytest.raises(UsageError, match=message):
        MaskShapes(**{**sizes, "height": 480, "width": 640, **change})


def test_results_have_names():
    with pytest.raises(UsageError, match="not 'rle'"):
        mask_plan(MaskShapes(2, 1, 1, 4, 4, 30, 40), "rle")
