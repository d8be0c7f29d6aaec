"""supervision's Detections, used as supervision uses them."""

import numpy as np
import pytest
from mask_scenes import nothing, scene

sv = pytest.importorskip("supervision")


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_masks_are_equal_pixel_for_pixel(seed, compact):
    result = scene(seed, tracks=np.array([4, 9, 1, -1, 2, 3]))
    found = result.to_supervision(compact=compact)
    assert len(found) == len(result)
    np.testing.assert_array_equal(np.asarray(found.mask), result.masks)
    np.testing.assert_array_equal(found.xyxy, result.boxes_float)
    np.testing.assert_array_equal(found.confidence, result.mask_scores)
    np.testing.assert_array_equal(found.class_id, result.classes)
    np.testing.assert_array_equal(found.tracker_id, result.track_ids)
    assert found.data["class_name"].tolist() == result.names
    np.testing.assert_array_equal(found.area, result.masks.sum((1, 2)))
    # What users do with them: filter, draw.
    some = found[found.confidence > 0.5]
    np.testing.assert_array_equal(np.asarray(some.mask), result.masks[result.mask_scores > 0.5])
    image = np.zeros((result.height, result.width, 3), np.uint8)
    drawn = sv.MaskAnnotator(opacity=1).annotate(image.copy(), found)
    np.testing.assert_array_equal(drawn.any(axis=2), result.masks.any(axis=0))


def test_compact_masks_are_those_that_supervision_makes():
    from supervision.detection.compact_mask import CompactMask

    result = scene(1)
    rectangles = [[r.x, r.y, r.x + r.width - 1, r.y + r.height - 1] for r in result.regions[:-1]]
    own = result.to_supervision(compact=True).mask[:-1]
    size = result.height, result.width
    assert own == CompactMask.from_dense(result.masks[:-1], np.array(rectangles, float), size)


@pytest.mark.parametrize("compact", [False, True])
def test_nothing_found(compact):
    found = nothing().to_supervision(compact=compact)
    assert len(found) == 0 and found.tracker_id is None and np.asarray(found.mask).shape == (0, 20, 30)
    assert len(sv.Detections.merge([found, scene(height=20, width=30).to_supervision(compact=compact)])) == 6


def test_compact_masks_of_a_large_image_take_no_pixels():
    import tracemalloc

    result = scene(0, 6000, 8000)
    result.regions
    tracemalloc.start()
    found = result.to_supervision(compact=True)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000 < found.mask.area.sum() and kept < 4_000_000
