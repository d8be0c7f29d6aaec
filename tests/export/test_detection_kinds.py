"""Detection in the graph, in NumPy and by the CUDA kernels gives the same detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_on_cpu import run

from yolact.model import Yolact
from yolact_export import verify
from yolact_export.onnx import OnnxOptions, write_onnx
from yolact_runtime import Detections, load_engine
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.priors import make_priors


@pytest.mark.parametrize("half", [False, True])
def test_three_kinds_of_detection_agree(half: bool, network: Yolact, tmp_path: Path) -> None:
    import onnxruntime

    for detect in ("native", "runtime"):
        write_onnx(network, tmp_path / f"{detect}.onnx", OnnxOptions(detect=detect, batch=2))
    batch = resize_batch(verify.verification_images(None)[:2], 128, "uint8")
    with (
        load_engine(tmp_path / "native.onnx", providers=["cpu"]) as native,
        load_engine(tmp_path / "runtime.onnx", providers=["cpu"]) as runtime,
    ):
        in_graph, in_numpy, meta = native.detect(batch), runtime.detect(batch), runtime.metadata
    session = onnxruntime.InferenceSession(tmp_path / "runtime.onnx", providers=["CPUExecutionProvider"])
    names = ("loc", "logits", "coefficients")
    heads = dict(zip(names, session.run(list(names), {"images": batch}), strict=True))
    if half:
        heads = {name: value.astype(np.float16) for name, value in heads.items()}
    assert meta.priors is not None
    spec = meta.priors
    priors = make_priors(spec.levels, spec.scales, spec.aspect_ratios, meta.input_size, spec.square)
    n, p, m = heads["coefficients"].shape
    dtype = np.float16 if half else np.float32
    plan = detection_plan(
        *(n, p, len(meta.class_names), m),
        **{f"{name}_dtype": dtype for name in names},  # type: ignore[arg-type]
    )
    found = run(plan, heads | {"priors": priors})
    assert in_graph.count.tolist() == in_numpy.count.tolist() == [100, 100]
    _assert_close(in_graph, in_numpy._asdict(), 1e-5)
    if not half:
        _assert_close(in_graph, found | {"coefficients": found["kept_coefficients"]}, 1e-5)
    else:
        # Rounded heads may swap neighbours in the order of scores; the scores themselves hardly move.
        np.testing.assert_allclose(found["scores"], in_graph.scores, atol=5e-3)


def _assert_close(expected: Detections, found: dict[str, np.ndarray], tolerance: float) -> None:
    np.testing.assert_array_equal(found["count"], expected.count)
    np.testing.assert_array_equal(found["classes"], expected.classes)
    for name in ("boxes", "scores", "coefficients"):
        np.testing.assert_allclose(found[name], getattr(expected, name), atol=tolerance)
