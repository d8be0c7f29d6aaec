import numpy as np
import oracle
import pytest
import torch

from yolact_runtime.preprocess import resize_batch


@pytest.mark.parametrize("size", [(1, 1), (8000, 50), (48, 64), (333, 517)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.01), ("uint8", 1.0)])
def test_it_resizes_as_the_training_does(size, dtype, tolerance):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    before = image.copy()
    batch = resize_batch([image, image[::-1]], 55, dtype)
    assert batch.shape == (2, 55, 55, 3) and batch.dtype == dtype
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(tensor, (55, 55), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(batch[0], expected[0].permute(1, 2, 0).numpy(), atol=tolerance)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("size", [(384, 640), (550, 300), (320, 1024)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.01), ("uint8", 1.0)])
def test_inputs_that_are_not_square(size, dtype, tolerance):
    image = np.random.default_rng(1).integers(0, 256, (97, 131, 3), np.uint8)
    batch = resize_batch([image], size, dtype)
    assert batch.shape == (1, *size, 3) and batch.dtype == dtype
    np.testing.assert_allclose(batch[0], oracle.resize(image, *size), atol=tolerance)
