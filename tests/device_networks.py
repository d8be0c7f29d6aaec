"""Small networks of every kind that the kernels on the GPU run around, and images for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fake_onnx import NATIVE, RUNTIME, native_arrays, pack_mask_iou_net, runtime_arrays

from yolact_runtime import Result

M = 4


def smooth(seed: int, rows: int = 9, columns: int = 7) -> np.ndarray:
    """Prototypes (1, Hp, Wp, M) whose masks have curved borders, far from 0.5 nearly everywhere."""
    y, x = np.mgrid[0:rows, 0:columns]
    turns = np.random.default_rng(seed).uniform(0.2, 0.9, (M, 3))
    planes = [3 * np.sin(a * x + b * y + 3 * c) for a, b, c in turns]
    return np.stack(planes, axis=-1).astype(np.float32)[None]


def images(seed: int = 0) -> list[np.ndarray]:
    """Of different sizes and brightness; the third so dark that a detection falls below the threshold."""
    rng = np.random.default_rng(seed)
    sizes, lights = [(20, 30), (41, 17), (64, 64), (9, 50)], [255, 200, 90, 240]
    return [rng.integers(0, light, (*size, 3), np.uint8) for size, light in zip(sizes, lights, strict=True)]


def native(mask_scores: bool = False) -> dict[str, np.ndarray]:
    arrays = native_arrays()
    rng = np.random.default_rng(1)
    arrays["coefficients"] = np.zeros((1, 4, M), np.float32)
    arrays["coefficients"][:, :2] = rng.uniform(-1, 1, (1, 2, M))
    arrays["prototypes"] = smooth(2)
    if mask_scores:
        arrays["mask_scores"] = arrays["scores"] / 2
    return arrays


def half(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs that the mask kernels do not take."""
    floats = ("boxes", "coefficients", "prototypes")
    return {name: array.astype(np.float16) if name in floats else array for name, array in arrays.items()}


def heads(kind: type = np.float32) -> dict[str, np.ndarray]:
    arrays = runtime_arrays()
    rng = np.random.default_rng(3)
    arrays["loc"] = rng.uniform(-1, 1, (1, 4, 4)).astype(np.float32)
    arrays["logits"] = rng.uniform(-3, 6, (1, 4, 4)).astype(np.float32)
    arrays["coefficients"] = rng.uniform(-1, 1, (1, 4, M)).astype(np.float32)
    arrays["prototypes"] = smooth(4)
    return {name: array.astype(kind) for name, array in arrays.items()}


MASK_IOU_NET = pack_mask_iou_net([(np.full((3, 1, 1, 1), 0.5, np.float32), np.zeros(3, np.float32))])
ENGINES = {
    "native": (native(), NATIVE),
    "native, masks scored": (native(True), replace(NATIVE, mask_iou=True)),
    "native, float32 images": (native(), replace(NATIVE, input_dtype="float32")),
    "native, in half": (half(native()), NATIVE),
    "raw heads": (heads(), RUNTIME),
    "raw heads in half": (heads(np.float16), RUNTIME),
    "raw heads, masks scored": (heads(), replace(RUNTIME, mask_iou=True, mask_iou_net=MASK_IOU_NET)),
    "no single images": (native(), replace(NATIVE, min_batch=2)),
}


def assert_same(got: list[Result], expected: list[Result]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert (one.height, one.width, one.class_names) == (other.height, other.width, other.class_names)
        np.testing.assert_array_equal(one.classes, other.classes)
        np.testing.assert_array_equal(one.coefficients, other.coefficients)
        # The kernels' exponential is not NumPy's.
        for name in ("scores", "mask_scores", "relative_boxes"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=2e-6, atol=1e-6)
        assert one.rles == other.rles
