"""FiftyOne's Detections, rendered by FiftyOne. The package has 650 MB, so few installations run this."""

import numpy as np
import pytest
from mask_scenes import nothing, scene

fol = pytest.importorskip("fiftyone.core.labels")


@pytest.mark.parametrize("size", [(117, 203), (768, 1023), (1, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_masks_are_equal_at_the_size_of_the_image(seed, size):
    result = scene(seed, *size, tracks=np.array([4, 9, 1, -1, 2, 3]))
    found = result.to_fiftyone()
    assert isinstance(found, fol.Detections) and len(found.detections) == len(result)
    for row, one in enumerate(found.detections):
        assert one.label == result.names[row]
        assert one.confidence == pytest.approx(float(result.mask_scores[row]), abs=1e-7)
        assert one.index == {-1: None}.get(result.track_ids[row], result.track_ids[row])
        x, y, width, height = np.array(one.detected_box) * (size[::-1] * 2)
        np.testing.assert_allclose([x, y, x + width, y + height], result.boxes_float[row], atol=1e-3)
        if result.masks[row].any():
            back = one.to_segmentation(frame_size=size[::-1], target=1).mask
            np.testing.assert_array_equal(back.astype(bool), result.masks[row])
        else:
            assert one.mask is None and one.bounding_box == one.detected_box
    again = fol.Detections.from_json(found.to_json())
    assert [one.label for one in again.detections] == result.names
    np.testing.assert_array_equal(again.detections[0].mask, found.detections[0].mask)


def test_nothing_found():
    assert nothing().to_fiftyone().detections == []
