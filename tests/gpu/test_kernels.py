"""Plans on the GPU give the same results as on the CPU, where other tests compare them with oracles."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_on_cpu import run
from kernel_heads import make_heads

from yolact_runtime.cuda.device import Device
from yolact_runtime.cuda.launch import LoadedPlan
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.masks import MaskShapes, mask_plan, read_regions
from yolact_runtime.cuda.plans.plan import Plan
from yolact_runtime.cuda.plans.preprocess import pack, preprocess_plan
from yolact_runtime.masks import Region
from yolact_runtime.metadata import InputSize

pytest.importorskip("pycuda.driver", reason="pycuda is not installed", exc_type=ImportError)
pytestmark = pytest.mark.gpu


def on_device(plan: Plan, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the second of two runs, which must not depend on the first."""
    with Device() as device, device.current, LoadedPlan(device, plan) as loaded:
        for name, array in inputs.items():
            loaded.upload(name, array)
        loaded.run()
        first = {buffer.name: loaded.download(buffer.name) for buffer in plan.outputs}
        loaded.run()
        second = {buffer.name: loaded.download(buffer.name) for buffer in plan.outputs}
    if "edges" not in first:  # of which what lies past the last one is not written
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name])
    return second


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("priors", "classes", "batch"), [(1, 1, 1), (700, 5, 3), (19248, 80, 1)])
def test_detection(dtype: str, priors: int, classes: int, batch: int) -> None:
    heads = make_heads(7, priors, classes, batch)
    heads = heads.half() if dtype == "float16" else heads
    inputs = {
        "loc": heads.loc,
        "logits": heads.logits,
        "coefficients": np.ascontiguousarray(heads.coefficients),
        "priors": heads.priors,
    }
    kinds = {f"{name}_dtype": inputs[name].dtype for name in ("loc", "logits", "coefficients")}
    plan = detection_plan(batch, priors, classes, inputs["coefficients"].shape[2], **kinds)
    expected, got = run(plan, inputs), on_device(plan, inputs)
    np.testing.assert_array_equal(got["count"], expected["count"])
    # The GPU's exponential differs in the last bits, so rows of nearly equal scores may change places.
    np.testing.assert_allclose(got["scores"], expected["scores"], rtol=1e-5, atol=1e-12)
    for n, count in enumerate(expected["count"]):
        rows = [
            sorted(
                zip(
                    out["classes"][n, :count].tolist(),
                    map(tuple, out["kept_coefficients"][n, :count].tolist()),
                    map(tuple, out["boxes"][n, :count].tolist()),
                    strict=True,
                )
            )
            for out in (got, expected)
        ]
        # Coefficients spell the prior: which are kept, of which class, and where.
        assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]]
        for (*_, box), (*_, other) in zip(*rows, strict=True):
            np.testing.assert_allclose(box, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_masks(dtype: str) -> None:
    rng = np.random.default_rng(3)
    shapes = MaskShapes(2, 20, 32, 35, 40, 120, 200, dtype, edge_capacity=20 * (200 * 35 + 1))
    centres, sides = rng.uniform(0, 1, (2, 20, 2)), rng.uniform(0.05, 0.8, (2, 20, 2))
    sizes = np.array([(120, 200), (77, 131)], np.int32)
    inputs = {
        "boxes": np.concatenate([centres - sides / 2, centres + sides / 2], axis=2).astype(np.float32),
        "kept_coefficients": np.tanh(rng.normal(size=(2, 20, 32))).astype(np.float32),
        "count": np.array([20, 13], np.int32),
        "prototypes": np.maximum(rng.normal(size=(2, 35, 40, 32)), 0).astype(dtype),
        "sizes": sizes,
    }
    plan = mask_plan(shapes)
    pixels: list[list[Region]] = []
    for out in (on_device(plan, inputs), run(plan, inputs)):
        found = read_regions(inputs["count"], sizes, out["regions"], out["offsets"], out["edges"])
        pixels.append([region for image in found for region in image])
    differing = total = 0
    for got, expected in zip(*pixels, strict=True):
        assert (got.x, got.y, got.width, got.height) == (
            expected.x, expected.y, expected.width, expected.height,
        )  # fmt: skip
        differing += len(np.setxor1d(got.edges, expected.edges))
        total += len(expected.edges)
    # Rounding moves an edge by a pixel where a value is within a few millionths of one half.
    assert differing <= 1e-3 * total


@pytest.mark.parametrize("size", [110, (60, 110), (110, 60)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
def test_preprocessing(dtype: str, size: InputSize) -> None:
    images = [
        np.random.default_rng(5).integers(0, 256, (*size, 3), np.uint8) for size in ((426, 640), (55, 30))
    ]
    means, stds, capacity = (104.0, 117.0, 124.0), (57.0, 57.0, 58.0), sum(image.size for image in images)
    plan = preprocess_plan(2, size, capacity, dtype, mean=means, std=stds)
    inputs = {buffer.name: np.zeros(buffer.shape, buffer.dtype) for buffer in plan.inputs}
    pack(images, inputs["pixels"], inputs["table"])
    np.testing.assert_array_equal(on_device(plan, inputs)["images"], run(plan, inputs)["images"])
