"""Inputs that are not square: all engines against the float64 oracle, for batches of one and of three."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from engine_files import engine_of
from fake_gpu import FakeGpu
from golden import match_rows

from yolact.engine import TorchEngine
from yolact.model import Yolact
from yolact.model.priors import pyramid_levels
from yolact_export import verify
from yolact_export.onnx import OnnxOptions, write_onnx
from yolact_runtime import Engine, Result, load_engine
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.priors import make_priors

SIZES = [(384, 640), (550, 300), (320, 1024)]
# Of sizes that are neither those of the inputs nor of their shape.
IMAGES = [
    image[:height, :width]
    for image, (height, width) in zip(
        verify.verification_images(None), [(90, 160), (131, 77), (60, 200)], strict=False
    )
]
PASSING = 10  # priors of each image above the score threshold, on average
ROWS = 48  # more than these become


@dataclass(frozen=True)
class Wide:
    """A network with an input of some size, its exports, and what the oracle detects in `IMAGES`."""

    model: Yolact
    exports: dict[str, Path]
    expected: list[dict[str, np.ndarray]]

    def check(self, engine: Engine) -> list[Result]:
        """Compare an engine with the oracle, for a batch of three and for one of one."""
        assert engine.metadata.input_shape == self.model.config.model.input_shape
        results = engine.predict(IMAGES, 0.0, ROWS)
        for result, expected in zip(results, self.expected, strict=True):
            assert_detects(result, expected)
        assert_detects(engine.predict(IMAGES[1:2], 0.0, ROWS)[0], self.expected[1])
        boxes = np.concatenate([np.diff(result.boxes.reshape(-1, 2, 2), axis=1) for result in results])
        assert 0.05 < sum(result.masks.sum() for result in results) / boxes.prod(axis=-1).sum() < 0.9
        return results


def assert_detects(result: Result, expected: dict[str, np.ndarray]) -> None:
    """Compare boxes, classes, scores and the pixels of masks with the oracle's."""
    found = result.classes, result.scores, result.relative_boxes
    rows = match_rows(expected, "o", *found, score_tolerance=2e-5, box_tolerance=1e-4)
    soft = oracle.full_masks(
        expected["coefficients"][rows],
        expected["prototypes"],
        expected["o_box"][rows],
        result.height,
        result.width,
    )
    np.testing.assert_array_equal((result.masks != (soft > 0.5)) & (np.abs(soft - 0.5) > 1e-3), False)


@pytest.fixture(
    scope="module",
    params=[SIZES[0], *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:])],
    ids=["x".join(map(str, size)) for size in SIZES],
)
def wide(request: pytest.FixtureRequest, network: Yolact, tmp_path_factory: pytest.TempPathFactory) -> Wide:
    settings = dataclasses.replace(
        network.config.model,
        input_size=request.param,
        prior_scales=tuple(sizes[:1] for sizes in network.config.model.prior_scales),
        prior_aspect_ratios=(1.0, 0.5, 2.0),
    )
    config = dataclasses.replace(network.config, model=settings)
    model = Yolact(config).eval()
    model.load_state_dict(network.state_dict())
    batch = resize_batch(IMAGES, request.param)
    with torch.no_grad():  # masks away from one half
        model.prediction_layers[0].mask_layer.weight.mul_(3)  # type: ignore[union-attr, operator]
    heads = TorchEngine.from_model(model, "cpu", "uint8").heads(batch)
    best = np.sort([oracle.softmax(logits)[:, 1:].max(axis=1) for logits in heads["logits"]], axis=None)[::-1]
    cut = PASSING * len(IMAGES)
    gap = cut + int(np.argmin(np.diff(best[cut : cut + 10])))
    threshold = float((best[gap] + best[gap + 1]) / 2)
    model.config = dataclasses.replace(
        config, detect=dataclasses.replace(config.detect, score_threshold=threshold, max_detections=ROWS)
    )
    priors = oracle.priors(
        *request.param, settings.prior_scales, settings.prior_aspect_ratios, settings.prior_square
    )
    expected = []
    for loc, logits, coefficients, prototypes in zip(*heads.values(), strict=True):
        found = oracle.detect(loc, logits, coefficients, priors, threshold, limit=ROWS)
        named = {"o_box": found["boxes"], "o_class": found["classes"], "o_score": found["scores"]}
        expected.append(named | {"coefficients": found["coefficients"], "prototypes": prototypes})
    folder = tmp_path_factory.mktemp("wide")
    exports = {}
    for detect in ("native", "runtime"):
        exports[detect] = folder / f"{detect}.onnx"
        write_onnx(model, exports[detect], OnnxOptions(detect=detect, max_batch=3))
    return Wide(model, exports, expected)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_priors(size: tuple[int, int], square: bool) -> None:
    scales, ratios = [[s, 1.3 * s] for s in (24, 48, 96, 192, 384)], (1.0, 0.5, 2.0)
    priors = make_priors(pyramid_levels(size), scales, ratios, size, square)
    np.testing.assert_allclose(priors, oracle.priors(*size, scales, ratios, square), rtol=1e-6)


def test_pytorch(wide: Wide) -> None:
    wide.check(TorchEngine.from_model(wide.model, "cpu", "uint8"))


@pytest.mark.parametrize("detect", ["native", "runtime"])
def test_onnx_runtime(detect: str, wide: Wide) -> None:
    with load_engine(wide.exports[detect], backend="onnxruntime") as engine:
        wide.check(engine)


@pytest.mark.parametrize("detect", ["native", "runtime"])
def test_openvino(detect: str, wide: Wide, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    with load_engine(wide.exports[detect], backend="openvino") as engine:
        wide.check(engine)


@pytest.mark.parametrize("detect", ["native", "runtime"])
def test_kernels(detect: str, wide: Wide, gpu: FakeGpu) -> None:
    """The whole TensorRT engine, with a network that ONNX Runtime runs: resize, detection and masks."""
    with load_engine(wide.exports[detect], backend="onnxruntime") as engine:
        path = engine_of(wide.exports[detect], engine.metadata)
    with load_engine(path) as engine:
        results = wide.check(engine)
    assert all(result.contours is not None for result in results)
    assert not gpu.problems
    assert not gpu.held
