import json

import numpy as np
import pytest
from golden import assert_pixel_boxes
from pycocotools import mask as coco_mask
from shared_data import reference_files

from yolact_runtime import Result, YolactError
from yolact_runtime import masks as mask_ops


def make(boxes, height=100, width=200, scores=None, mask_scores=None, classes=None):
    """A result whose masks fill their boxes."""
    n = len(boxes)
    scores = np.linspace(0.9, 0.5, n) if scores is None else scores
    return Result(
        height=height,
        width=width,
        relative_boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        mask_scores=np.array(scores if mask_scores is None else mask_scores, np.float32),
        classes=np.zeros(n, np.int64) if classes is None else np.array(classes),
        coefficients=np.full((n, 1), 5, np.float32),
        prototypes=np.ones((20, 20, 1), np.float32),
        class_names=("cat", "dog"),
        class_ids=(0, 44),
    )


def test_boxes_in_pixels():
    result = make([(0.1, 0.2, 0.5049, 0.999), (0.9, 0.8, 0.1, 0.2), (-1, -2, 3, 4), (2, 2, 3, 3)])
    assert result.boxes.dtype == np.int64
    # Rounded down, ordered, and clamped on both sides.
    assert result.boxes.tolist() == [
        [20, 20, 100, 99],
        [20, 20, 180, 80],
        [0, 0, 200, 100],
        [200, 100, 200, 100],
    ]
    np.testing.assert_allclose(result.boxes_float[0], [20, 20, 100.98, 99.9], atol=1e-4)


def test_huge_boxes_stay_in_the_image():
    assert make([(-3e38, -3e38, 3e38, 3e38)]).boxes.tolist() == [[0, 0, 200, 100]]


def test_coco_entries():
    result = make([(0.1, 0.2, 0.5049, 0.999)], scores=[0.87], mask_scores=[0.5], classes=[1])
    (entry,) = json.loads(json.dumps(result.to_coco(7)))
    assert entry["image_id"] == 7 and entry["category_id"] == 44 and entry["score"] == 0.5
    assert entry["bbox"] == [20.0, 20.0, 80.98, 79.9]
    assert entry["segmentation"]["size"] == [100, 200]
    np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), result.masks[0])
    (box,) = result.to_coco(7, masks=False)
    assert box["score"] == 0.87 and "segmentation" not in box


def test_polygons_and_empty_masks():
    result = make([(0.25, 0.25, 0.75, 0.75), (3, 3, 4, 4)])
    shape, nothing = (entry["segmentation"] for entry in result.to_coco(1, polygons=True))
    drawn = coco_mask.decode(coco_mask.frPyObjects(shape, 100, 200))[..., 0]
    np.testing.assert_array_equal(drawn, result.masks[0])
    assert coco_mask.area(nothing) == 0 and nothing == result.rles[1]


@pytest.mark.parametrize("nms", ["fast", "trad", "cc"])
@pytest.mark.parametrize(
    "path",
    [p for stem in ("boxes", "golden") for p in reference_files(f"{stem}_*.npz")],
    ids=lambda p: p.stem,
)
def test_boxes_agree_with_the_reference(path, nms):
    golden = np.load(path)
    height, width = golden["img_hw"].tolist()
    assert_pixel_boxes(make(golden[f"{nms}_det_box"], height, width).boxes, golden, nms)


def test_scores_survive_json():
    scores = np.random.default_rng(0).random(50).astype(np.float32)
    entries = make(np.tile([[0.1, 0.1, 0.2, 0.2]], (50, 1)), scores=scores).to_coco(1)
    back = np.array([json.loads(json.dumps(entry["score"])) for entry in entries], np.float32)
    np.testing.assert_array_equal(back, scores)


def test_results_cannot_be_changed():
    with pytest.raises(AttributeError):
        make([]).height = 3


def overlapping():
    """A result whose masks overlap, and one that is empty."""
    return make([(0.1, 0.1, 0.6, 0.6), (0.3, 0.3, 0.9, 0.9), (3, 3, 4, 4), (0, 0, 1, 0.4)])


def test_a_label_map_has_the_lowest_row_of_each_pixel():
    result = overlapping()
    labels = result.label_map()
    expected = np.where(result.masks.any(axis=0), result.masks.argmax(axis=0) + 1, 0)
    assert labels.dtype == np.uint8 and labels.shape == (100, 200)
    np.testing.assert_array_equal(labels, expected)
    assert sorted(set(labels.flat)) == [0, 1, 2, 4]
    assert not make([]).label_map().any()


def test_label_maps_of_many_instances_have_16_bits():
    boxes = [(x / 20, y / 20, (x + 0.1) / 20, (y + 0.1) / 20) for y in range(15) for x in range(20)]
    for count, kind in ((255, np.uint8), (256, np.uint16), (300, np.uint16)):
        result = make([(3, 3, 4, 4)] * (count - 200) + boxes[:200])  # the last ones have pixels
        labels = result.label_map()
        expected = np.where(result.masks.any(axis=0), result.masks.argmax(axis=0) + 1, 0)
        assert labels.dtype == kind and labels.max() > count - 4  # rows below are covered
        np.testing.assert_array_equal(labels, expected)
    with pytest.raises(YolactError, match=r"for 65,535 instances; there are 65,536"):
        mask_ops.label_map(result.regions[:1] * 65536, 10, 10)


def test_areas_and_centroids_are_those_of_the_masks():
    result = overlapping()
    assert result.areas.dtype == np.int64
    assert result.areas.tolist() == [int(coco_mask.area(rle)) for rle in result.rles]
    assert result.areas.tolist() == [entry["area"] for entry in result.to_coco(1)]
    for mask, centroid in zip(result.masks, result.centroids, strict=True):
        rows, columns = np.nonzero(mask)
        expected = (columns.mean() + 0.5, rows.mean() + 0.5) if len(rows) else (np.nan, np.nan)
        np.testing.assert_allclose(centroid, expected, rtol=1e-12)
    assert make([]).areas.shape == (0,) and make([]).centroids.shape == (0, 2)


def test_cutouts_have_the_mask_as_alpha():
    result = overlapping()
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    for row, (mask, rle) in enumerate(zip(result.masks, result.rles, strict=True)):
        x, y, width, height = coco_mask.toBbox(rle).astype(int).tolist()
        window = slice(y, y + height), slice(x, x + width)
        cut = result.cutout(image, row)
        np.testing.assert_array_equal(cut[..., 3], mask[window] * 255)
        np.testing.assert_array_equal(cut[..., :3], image[window])
    assert result.cutout(image, 2).shape == (0, 0, 4)
    with pytest.raises(IndexError):
        result.cutout(image, 4)
    with pytest.raises(YolactError, match="the image is 3 x 2, the result 200 x 100"):
        result.cutout(np.zeros((2, 3, 3), np.uint8), 0)
    for other in (image[..., 0], np.dstack([image, image[..., 0]]), image.astype(np.float32), "a.jpg"):
        with pytest.raises(YolactError, match="uint8 BGR is needed"):
            result.cutout(other, 0)


def test_the_representation_is_short():
    assert (
        repr(make([(0, 0, 1, 1)] * 3, classes=[1, 0, 1]))
        == "Result(200 x 100, 3 detections (dog: 2, cat: 1))"
    )
    assert repr(make([])) == "Result(200 x 100, 0 detections)"
