from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from yolact.data.segmentation import checked_rle, rle_counts, rle_totals, to_mask, to_region, to_rle

masks = hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))


def uncompressed(mask: np.ndarray) -> list[int]:
    counts, value, length = [], 0, 0
    for pixel in mask.reshape(-1, order="F"):
        if pixel != value:
            counts.append(length)
            value, length = pixel, 0
        length += 1
    return [*counts, length]


@given(masks)
def test_rle_of_both_kinds_is_that_of_pycocotools(mask: np.ndarray) -> None:
    rle = coco_mask.encode(np.asfortranarray(mask))
    assert rle_counts(rle["counts"]).tolist() == uncompressed(mask)
    size = list(mask.shape)
    for counts in (rle["counts"], rle["counts"].decode(), uncompressed(mask)):
        assert (to_mask({"size": size, "counts": counts}, *mask.shape) == mask).all()


damaged = st.binary(max_size=12) | st.text("0123456789PQRSTUVWXYZabcdefghijklmno", max_size=30).map(
    str.encode
)


@example([b"1", b"00"])
@given(st.lists(masks.map(lambda m: coco_mask.encode(np.asfortranarray(m))["counts"]) | damaged, max_size=6))
def test_totals_of_many_are_those_of_each(counts: list[bytes]) -> None:
    expected = []
    for each in counts:
        try:
            runs = rle_counts(each)
            # All runs but the first cover pixels, so more of them than pixels are damaged.
            expected.append(int(runs.sum()) if len(runs) <= runs.sum() + 1 else -1)
        except ValueError:
            expected.append(-1)
    assert rle_totals(counts).tolist() == expected


def test_long_runs_are_read() -> None:
    mask = np.zeros((3000, 2000), np.uint8)
    mask[1234:2345, 1000:] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    assert rle_counts(rle["counts"]).sum() == mask.size
    assert (to_mask(rle, *mask.shape) == mask).all()


@given(st.lists(st.floats(-20, 60), min_size=6, max_size=16).filter(lambda values: len(values) % 2 == 0))
def test_polygons_are_rasterised_as_pycocotools_does_also_outside_the_image(polygon: list[float]) -> None:
    expected = coco_mask.decode(coco_mask.frPyObjects([polygon], 30, 40))[:, :, 0]
    assert (to_mask([polygon], 30, 40) == expected).all()


def test_polygons_of_one_object_are_united_and_lines_cover_nothing() -> None:
    both = to_mask([[1, 1, 5, 1, 5, 5, 1, 5], [10, 10, 14, 10, 14, 14, 10, 14], [0, 0, 20, 20]], 20, 20)
    assert both.sum() == 32
    assert to_mask([[0, 0, 10, 10]], 20, 20).sum() == 0
    assert to_mask([], 20, 20).shape == (20, 20)


def test_polygons_may_be_arrays() -> None:
    polygons = [[1.5, 1, 9, 2.25, 5, 8], [3, 3, 4, 4]]
    arrays = [array("d", polygon) for polygon in polygons]
    assert (to_mask(arrays, 10, 20) == to_mask(polygons, 10, 20)).all()
    assert to_region(arrays, 10, 20, (0, 0, 20, 10))[0].sum() == to_mask(polygons, 10, 20).sum()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("circle", "str"),
        (None, "NoneType"),
        ([1, 2, 3, 4, 5, 6], "inside a list"),
        ([[1, 2], [3, 4], [5, 6]], "a list of pairs"),
        ([[[1, 2], [3, 4], [5, 6]]], "a list of pairs"),
        ([[10**400, 2, 3, 4, 5, 6]], "finite"),
        ({"size": [10, 20], "counts": [200]}, r"size \[10, 20\], the image \[10, 10\]"),
        ([[1, 2, 3, 4, 5]], "odd number"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ([[1, 2, 3, 4, 5, "6"]], "finite"),
        ([[1, 2, 3, 4, 5, 1e12]], "far out"),
        ([[1, 2, 3, 4, 5, 20_000]], "reaches 20000, far out of its image"),
        ({"counts": [100]}, "size"),
        ({"size": [10, 10]}, "counts"),
        ({"size": [10, 10], "counts": [5, 5]}, "covers 10 pixels"),
        ({"size": [10, 10], "counts": [5, 1000]}, "covers 1005 pixels"),
        ({"size": [10, 10], "counts": [5, -5, 100]}, "0 or more"),
        ({"size": [10, 10], "counts": "PPPPPPP0"}, "damaged|cover"),
        ({"size": [10, 10], "counts": "~~~~"}, "damaged"),
        ({"size": [10, 10], "counts": "\u20ac"}, "damaged|cover"),
        ({"size": [10, 10], "counts": ""}, "covers 0 pixels"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "size"),
        ({"size": [60_000, 60_000], "counts": [3_600_000_000]}, "size of 60000 x 60000"),
        ({"size": [10, 10], "counts": [10**400]}, "32 bits"),
        ({"size": [10, 10], "counts": [2**62] * 4 + [100]}, "32 bits"),
        ({"size": [10, 10], "counts": [2**32 - 1, 101]}, "covers 4294967396 pixels"),
        ({"size": [10, 10], "counts": [0] * 200 + [100]}, "201 runs, more than its 100 pixels"),
        ({"size": [10, 10], "counts": "0" * 200 + "T3"}, "201 runs, more than its 100 pixels"),
        # Seven digits with a sign, which pycocotools shifts out of its 32 bits.
        ({"size": [10, 10], "counts": "T3oooooo_"}, "damaged"),
    ],
)
def test_a_bad_segmentation_is_refused(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rle(segmentation, 10, 10)


@pytest.mark.parametrize(("height", "width"), [(65_536, 2), (2, 65_536), (65_535, 65_535), (2**31, 2**31)])
def test_images_beyond_the_limits_are_refused_before_anything_is_allocated(height: int, width: int) -> None:
    for segmentation in ([], [[1, 1, 9, 1, 9, 9]], {"size": [height, width], "counts": [height * width]}):
        with pytest.raises(ValueError, match="YOLACT_MAX_"):
            to_rle(segmentation, height, width)
        with pytest.raises(ValueError, match="YOLACT_MAX_"):
            to_region(segmentation, height, width, (0, 0, 4, 4))


@pytest.mark.parametrize(
    ("variable", "value", "segmentation"),
    [
        ("YOLACT_MAX_RLE", 5, {"size": [10, 10], "counts": [10] * 10}),
        ("YOLACT_MAX_RLE", 5, {"size": [10, 10], "counts": "0:0:0:0:0:0:0"}),
        ("YOLACT_MAX_OUTLINE", 40, [[0, 0, 9, 0, 9, 9, 0, 9], [0, 0, 9, 0, 9, 9]]),
    ],
)
def test_limits_of_runs_and_outlines(monkeypatch, variable: str, value: int, segmentation: object) -> None:
    monkeypatch.setenv(variable, str(value))
    with pytest.raises(ValueError, match=variable):
        to_rle(segmentation, 10, 10)


def test_outlines_within_the_limit_are_not_refused_for_their_number_of_points(monkeypatch) -> None:
    monkeypatch.setenv(
        "YOLACT_MAX_OUTLINE", "60"
    )  # 36 pixels and 36 points are fewer than 36 times the reach
    square = [(x, 0) for x in range(9)] + [(9, y) for y in range(9)]
    square += [(9 - x, 9) for x in range(9)] + [(0, 9 - y) for y in range(9)]
    with pytest.raises(ValueError, match="YOLACT_MAX_OUTLINE"):
        to_rle([[value for point in square for value in point]], 10, 10)
    monkeypatch.setenv("YOLACT_MAX_OUTLINE", "72")
    assert to_mask([[value for point in square for value in point]], 10, 10).sum() == 81


def test_many_polygons_are_united_as_pycocotools_does() -> None:
    rng = np.random.default_rng(0)
    polygons = (rng.random((300, 1, 2)) * 60 + rng.random((300, 3, 2)) * 9).reshape(300, 6).tolist()
    expected = coco_mask.merge(coco_mask.frPyObjects(polygons, 60, 60))
    assert to_rle(polygons, 60, 60) == expected


run_lengths = st.lists(st.integers(0, 9) | st.integers(0, 2**33), min_size=1, max_size=12)


def compressed(values: list[int]) -> bytes:
    """Numbers in the characters of compressed RLE, from the fourth on as they are, not as differences."""
    text = bytearray()
    for value in values:
        more = True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text.append(48 + (digit | 32 * more))
    return bytes(text)


@given(run_lengths.map(compressed) | st.binary(max_size=12), st.sampled_from([(1, 1), (3, 3), (5, 8)]))
def test_compressed_rle_that_is_accepted_means_the_same_to_pycocotools(counts: bytes, size) -> None:
    try:
        rle = checked_rle({"size": list(size), "counts": counts})
    except ValueError:
        assert rle_totals([counts])[0] != size[0] * size[1]
        return
    runs = rle_counts(counts)
    expected = np.repeat(np.arange(len(runs)) % 2, runs).reshape(size, order="F")
    assert (coco_mask.decode(rle) == expected).all()
    assert rle_totals([b"1", counts])[1] == size[0] * size[1]


coordinates = st.floats(-20, 60) | st.integers(-200, 600).map(lambda tenths: tenths / 10)
shapes = st.lists(
    st.lists(coordinates, min_size=6, max_size=16).filter(lambda p: len(p) % 2 == 0), max_size=3
)
windows = st.tuples(*[st.integers(-10, 30)] * 2, *[st.integers(20, 60)] * 2)


full_masks = hnp.arrays(np.uint8, (30, 40), elements=st.integers(0, 1))


@given(shapes | full_masks.map(lambda m: coco_mask.encode(np.asfortranarray(m))), windows)
def test_a_region_is_that_part_of_the_mask(segmentation, window) -> None:
    full = to_mask(segmentation, 30, 40)
    x1, y1, x2, y2 = window
    expected = np.zeros_like(full)
    inside = np.s_[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    expected[inside] = full[inside]
    region, x, y = to_region(segmentation, 30, 40, window)
    placed = np.zeros_like(full)
    placed[y : y + region.shape[0], x : x + region.shape[1]] = region
    assert (placed == expected).all()
