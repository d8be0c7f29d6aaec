"""The preprocessing kernel, run on the CPU, against OpenCV and torch."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from cuda_on_cpu import FORWARD, REVERSED, run
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact.model.preprocess import Normalise
from yolact.registry import get_config
from yolact_runtime.cuda.plans.plan import SOURCE_FOLDER
from yolact_runtime.cuda.plans.preprocess import pack, preprocess_plan
from yolact_runtime.errors import UsageError
from yolact_runtime.preprocess import resize_batch

SHAPE = st.one_of(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from([(1, 1), (1, 300), (700, 1), (55, 55), (110, 110), (110, 55), (220, 30), (426, 640)]),
)
SIZE = st.one_of(st.integers(1, 70), st.just(55), st.tuples(st.integers(1, 70), st.integers(1, 70)))


def random_images(seed, shapes):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]


def preprocess(
    images, size, dtype="uint8", order=FORWARD, spare_pixels=0, spare=0, skip_barrier=("", 0), **normalisation
):
    plan = preprocess_plan(
        len(images) + spare, size, sum(image.size for image in images) + spare_pixels, dtype, **normalisation
    )
    inputs = {buffer.name: np.zeros(buffer.shape, buffer.dtype) for buffer in plan.inputs}
    pack(images, inputs["pixels"], inputs["table"])
    return run(plan, inputs, order, skip_barrier=skip_barrier)["images"]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.lists(SHAPE, min_size=1, max_size=3), SIZE, st.integers(0, 5))
def test_bytes_are_those_of_opencv(seed, shapes, size, spare_pixels):
    images = random_images(seed, shapes)
    out = preprocess(images, size, spare_pixels=spare_pixels)
    np.testing.assert_array_equal(out, resize_batch(images, size))
    np.testing.assert_array_equal(out, preprocess(images, size, order=REVERSED, spare_pixels=spare_pixels))


def test_an_image_at_the_size_of_the_published_models():
    rng = np.random.default_rng(3)
    image = cv2.GaussianBlur(rng.integers(0, 256, (426, 640, 3), np.uint8), (0, 0), 2)
    np.testing.assert_array_equal(preprocess([image], 550), resize_batch([image], 550))


@pytest.mark.parametrize("name", ["yolact_resnet50", "yolact_darknet53"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 1e-3)])
def test_normalised_as_the_network_does(name, dtype, tolerance):
    model = get_config(name).model
    images = random_images(1, [(40, 31), (77, 120), (55, 55)])
    out = preprocess(images, 55, dtype, mean=model.mean, std=model.std)
    expected = Normalise(model)(torch.from_numpy(resize_batch(images, 55))).numpy()
    assert out.shape == expected.shape and out.dtype == dtype
    np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance)


def test_fewer_images_than_the_plan_takes():
    images = random_images(2, [(20, 30), (40, 10)])
    out = preprocess(images, 16, spare=2)
    np.testing.assert_array_equal(out, resize_batch([*images, images[1], images[1]], 16))


def test_the_barrier_is_needed():
    images = random_images(5, [(90, 90)])
    lines = (SOURCE_FOLDER / "preprocess.cu").read_text().splitlines()
    (line,) = (number for number, text in enumerate(lines, 1) if "__syncthreads" in text)
    without = [
        preprocess(images, 70, order=order, skip_barrier=("preprocess.cu", line))
        for order in (FORWARD, REVERSED)
    ]
    assert any((out != resize_batch(images, 70)).any() for out in without)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch 1..65535, not 0"),
        ({"size": (55, 40000)}, "width 1..32768, not 40000"),
        ({"size": (0, 55)}, "height 1..32768, not 0"),
        ({"capacity": 0}, "capacity 1..1099511627776, not 0"),
        ({"dtype": "int8"}, "uint8, float32 or float16, not int8"),
        ({"std": (1, 0, 1)}, "three positive stds"),
    ],
)
def test_limits(options, message):
    with pytest.raises(UsageError, match=message):
        preprocess_plan(**{"batch": 1, "size": 55, "capacity": 100, **options})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "1 to 2 images, not 0"),
        ([np.zeros((2, 2, 3), np.uint8)] * 3, "not 3"),
        ([np.zeros((2, 2), np.uint8)], r"uint8 \(2, 2\)"),
        ([np.zeros((2, 2, 3), np.float32)], "float32"),
        ([np.zeros((0, 2, 3), np.uint8)], "not 0x2"),
        ([np.zeros((5, 7, 3), np.uint8)], "100 bytes of pixels; raise its capacity to 105"),
    ],
)
def test_images_must_fit_the_plan(images, message):
    with pytest.raises(UsageError, match=message):
        pack(images, np.zeros(100, np.uint8), np.zeros((2, 3), np.int64))
