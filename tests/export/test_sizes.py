"""Classes, limits, input sizes and batches for which a traced size could end up in the graph."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from yolact.config import Classes
from yolact.engine import TorchEngine
from yolact.model import Yolact
from yolact.registry import get_config
from yolact.settings import override
from yolact_export import verify
from yolact_export.onnx import OnnxOptions, write_onnx
from yolact_runtime import load_engine
from yolact_runtime.preprocess import resize_batch

IMAGES = verify.verification_images(None)[:2]
DYNAMIC = OnnxOptions(max_batch=3)


def check(
    tmp_path: Path,
    options: OnnxOptions,
    classes: int,
    size: int,
    *settings: str,
    backend: str = "onnxruntime",
) -> verify.Comparison:
    """Export a random network and compare it with PyTorch."""
    torch.manual_seed(0)
    config = override(get_config("yolact_tiny"), [f"model.input_size={size}", *settings])
    names = tuple(f"class {index}" for index in range(classes))
    model = Yolact(replace(config, classes=Classes(names, tuple(range(classes))))).eval()
    reference = TorchEngine.from_model(model, "cpu", "uint8")
    head = model.prediction_layers[0]
    logits = reference.heads(resize_batch(IMAGES, config.model.input_size, "uint8"))["logits"]
    with torch.no_grad():  # scores that differ from prior to prior
        head.conf_layer.weight.mul_(2.0 / float(logits.std()))  # type: ignore[union-attr, operator]
    write_onnx(model, tmp_path / "m.onnx", options)
    with load_engine(tmp_path / "m.onnx", backend=backend) as engine:
        # Untrained masks hover about 0.5, where rounding decides.
        seen = verify.compare(reference, engine, IMAGES, verify.Tolerances(mask_iou=0.9))
    assert seen.problems == []
    assert seen.matched or seen.prepared
    return seen


@pytest.mark.parametrize(
    ("options", "classes", "size", "settings"),
    [
        (DYNAMIC, 1, 64, ["detect.max_detections=300"]),  # more than one class has candidates
        (DYNAMIC, 1, 33, ["detect.max_detections=100"]),  # more than there are priors
        (DYNAMIC, 2, 64, ["detect.max_detections=1", "detect.nms_top_k=3840"]),
        (OnnxOptions(), 2, 32, []),  # the last level of the pyramid is one pixel
        (OnnxOptions(batch=3), 1, 32, ["detect.nms_top_k=1"]),
        (replace(DYNAMIC, detect="runtime"), 1, 32, ["detect.max_detections=300"]),
        (DYNAMIC, 2, 64, ["detect.nms=cross_class", "detect.max_detections=300"]),
        (DYNAMIC, 2, 64, ["model.proto_scale=0.5"]),
        (DYNAMIC, 2, 64, ["model.proto_scale=0.5", "model.input_size=[33,90]"]),
        (replace(DYNAMIC, detect="runtime"), 2, 64, ["model.proto_scale=0.125"]),
    ],
)
def test_limits_above_and_below_what_there_is(
    tmp_path: Path, options: OnnxOptions, classes: int, size: int, settings: list[str]
) -> None:
    seen = check(tmp_path, options, classes, size, "detect.score_threshold=0", *settings)
    assert seen.matched > 0


def test_fewer_detections_than_rows(tmp_path: Path) -> None:
    seen = check(tmp_path, DYNAMIC, 1, 64, "detect.score_threshold=0.9", "detect.max_detections=300")
    assert 0 < seen.expected < 300


def test_openvino_takes_the_same_sizes(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    settings = ["detect.max_detections=300", "detect.score_threshold=0"]
    assert check(tmp_path, DYNAMIC, 1, 64, *settings, backend="openvino").matched > 0


SWEEP = list(
    itertools.product(
        (OnnxOptions(), OnnxOptions(batch=3), DYNAMIC),
        ("native", "runtime"),
        (1, 2, 80),
        (32, 33, 64, 100),
        (1, 100, 300, 3840),
        (1, 200, 3840),
        ("0", "0.9"),
    )
)


@pytest.mark.slow
@pytest.mark.parametrize("case", random.Random(0).sample(SWEEP, 24), ids=str)
def test_sweep(tmp_path: Path, case: tuple) -> None:  # type: ignore[type-arg]
    options, detect, classes, size, rows, candidates, threshold = case
    settings = [f"detect.max_detections={rows}", f"detect.nms_top_k={candidates}"]
    settings.append(f"detect.score_threshold={threshold}")
    check(tmp_path, replace(options, detect=detect), classes, size, *settings)
