import dataclasses

import numpy as np
import onnxruntime
import oracle
import pytest
from fake_onnx import (
    BOXES,
    CLASSES,
    NATIVE,
    RUNTIME,
    SCORES,
    native_arrays,
    pack_mask_iou_net,
    runtime_arrays,
    write_onnx,
)

from yolact_runtime import YolactError
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.errors import UsageError
from yolact_runtime.priors import make_priors
from yolact_runtime.rescore import MaskIouNet

WHITE, BLACK = np.full((20, 30, 3), 255, np.uint8), np.zeros((9, 9, 3), np.uint8)


def test_native_detections(tmp_path):
    engine = OnnxRuntimeEngine(write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE), threads=1)
    first, second, third = engine.predict([WHITE, BLACK, WHITE])
    for result in (first, third):
        np.testing.assert_array_equal(result.relative_boxes, BOXES)
        np.testing.assert_array_equal(result.scores, SCORES)
        np.testing.assert_array_equal(result.mask_scores, SCORES)
        np.testing.assert_array_equal(result.classes, CLASSES)
    assert len(second) == 0
    left = first.masks[0]
    assert left[:, :14].all() and not left[:, 20:].any()


def test_native_mask_scores(tmp_path):
    arrays = native_arrays()
    arrays["mask_scores"] = arrays["scores"] / 2
    path = write_onnx(tmp_path / "m.onnx", arrays, dataclasses.replace(NATIVE, mask_iou=True))
    (result,) = OnnxRuntimeEngine(path).predict([WHITE])
    np.testing.assert_array_equal(result.mask_scores, SCORES / 2)
    np.testing.assert_array_equal(result.scores, SCORES)


def test_half_precision_outputs(tmp_path):
    arrays = native_arrays()
    for name in ("boxes", "coefficients", "prototypes"):
        arrays[name] = arrays[name].astype(np.float16)
    (result,) = OnnxRuntimeEngine(write_onnx(tmp_path / "m.onnx", arrays, NATIVE)).predict([WHITE])
    np.testing.assert_array_equal(result.relative_boxes, BOXES)


def test_raw_heads(tmp_path):
    arrays = runtime_arrays()
    engine = OnnxRuntimeEngine(write_onnx(tmp_path / "m.onnx", arrays, RUNTIME))
    spec = RUNTIME.priors
    priors = make_priors(spec.levels, spec.scales, spec.aspect_ratios, 16, spec.square)
    expected = oracle.detect(
        arrays["loc"][0], arrays["logits"][0], arrays["coefficients"][0], priors, limit=4
    )
    for result in engine.predict([WHITE, WHITE], score_threshold=0, top_k=100):
        np.testing.assert_allclose(result.scores, expected["scores"], atol=1e-6)
        np.testing.assert_array_equal(result.classes, expected["classes"])
        np.testing.assert_allclose(result.relative_boxes, expected["boxes"], atol=1e-6)
    assert result.names[:2] == ["bird", "cat"]


def test_raw_heads_with_rescoring(tmp_path):
    # One 1x1 layer: the predicted IoU is the brightest mask value (sigmoid(6)) times 0.5 for class 2.
    layer = (np.array([0.1, 0.2, 0.5], np.float32).reshape(3, 1, 1, 1), np.zeros(3, np.float32))
    meta = dataclasses.replace(RUNTIME, mask_iou=True, mask_iou_net=pack_mask_iou_net([layer]))
    (result,) = OnnxRuntimeEngine(write_onnx(tmp_path / "m.onnx", runtime_arrays(), meta)).predict([WHITE])
    assert result.names[0] == "bird"
    assert result.mask_scores[0] == pytest.approx(result.scores[0] * 0.5 / (1 + np.exp(-6)), abs=1e-6)


def test_priors_that_do_not_fit_the_graph(tmp_path):
    meta = dataclasses.replace(RUNTIME, priors=dataclasses.replace(RUNTIME.priors, levels=((3, 3),)))
    path = write_onnx(tmp_path / "m.onnx", runtime_arrays(), meta)
    with pytest.raises(YolactError, match="4 priors, its metadata 9"):
        OnnxRuntimeEngine(path)


def test_providers(tmp_path, capfd):
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    for name in ("cpu", "CPUExecutionProvider"):
        assert OnnxRuntimeEngine(path, providers=[name]).name == "ONNX Runtime CPU"
    with pytest.raises(UsageError, match="provider 'abacus' is not in this ONNX Runtime"):
        OnnxRuntimeEngine(path, providers=["abacus"])
    with pytest.raises(UsageError, match="threads is 0"):
        OnnxRuntimeEngine(path, threads=0)
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        try:
            assert OnnxRuntimeEngine(path, providers=["cuda"]).name == "ONNX Runtime CUDA"
        except YolactError as error:
            assert "cuda does not load" in str(error) or "cannot open" in str(error)
    assert capfd.readouterr() == ("", "")


def test_raw_heads_keep_the_best_of_the_wanted_classes(tmp_path):
    """Four rows are kept: without a choice the best of all classes, with one those of the class."""
    arrays = runtime_arrays()
    arrays["loc"] = np.arange(16, dtype=np.float32).reshape(1, 4, 4) * 9 % 7 - 3  # boxes apart
    arrays["logits"][0] = [[0, 2, 3, 4], [0, 1, 3, 4], [0, 0, 3, 4], [0, -1, 3, 4]]
    engine = OnnxRuntimeEngine(write_onnx(tmp_path / "m.onnx", arrays, RUNTIME))
    spec = RUNTIME.priors
    priors = make_priors(spec.levels, spec.scales, spec.aspect_ratios, 16, spec.square)
    heads = arrays["loc"][0], arrays["logits"][0], arrays["coefficients"][0], priors
    every = oracle.detect(*heads, limit=1000)
    rows = np.flatnonzero(every["classes"] == 0)
    assert len(rows) >= 3 and not (oracle.detect(*heads, limit=4)["classes"] == 0).any()
    for result in engine.predict([WHITE, WHITE], 0, 100, classes=["cat"]):
        assert set(result.names) == {"cat"}
        np.testing.assert_allclose(result.scores, every["scores"][rows], atol=1e-6)
    (result,) = engine.predict([WHITE], 0, 2, classes=["cat"])
    np.testing.assert_allclose(result.scores, every["scores"][rows[:2]], atol=1e-6)


def test_masks_of_other_classes_are_not_rescored(tmp_path, monkeypatch):
    layer = (np.array([0.1, 0.2, 0.5], np.float32).reshape(3, 1, 1, 1), np.zeros(3, np.float32))
    meta = dataclasses.replace(RUNTIME, mask_iou=True, mask_iou_net=pack_mask_iou_net([layer]))
    engine = OnnxRuntimeEngine(write_onnx(tmp_path / "m.onnx", runtime_arrays(), meta))
    seen = []
    plain = MaskIouNet.__call__
    monkeypatch.setattr(
        MaskIouNet, "__call__", lambda net, masks, classes: seen.extend(classes) or plain(net, masks, classes)
    )
    (result,) = engine.predict([WHITE], 0, classes=["bird"])
    assert seen and set(seen) == {2} and set(result.names) == {"bird"}
