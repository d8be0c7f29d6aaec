"""Engines that return invalid outputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fake_onnx import NATIVE, RUNTIME, native_arrays, runtime_arrays, write_onnx

from yolact_runtime import Detections, Engine, YolactError, load_engine
from yolact_runtime.metadata import Metadata

WHITE = np.full((20, 30, 3), 255, np.uint8)
BACKENDS = ["onnxruntime", "openvino"]


class Fake(Engine):
    """Returns two instances for every image, changed by the test."""

    metadata = NATIVE

    def __init__(self, **changes: np.ndarray) -> None:
        self.changes = changes

    def detect(self, batch: np.ndarray) -> Detections:
        arrays = native_arrays()
        arrays |= {"mask_scores": arrays["scores"]} | self.changes
        return Detections(**{key: np.repeat(value, len(batch), axis=0) for key, value in arrays.items()})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["boxes", "scores", "coefficients", "mask_scores"])
def test_rows_that_are_no_numbers_are_dropped(
    caplog: pytest.LogCaptureFixture, name: str, value: float
) -> None:
    arrays = native_arrays()
    changed = (arrays["scores"] if name == "mask_scores" else arrays[name]).copy()
    changed[0, 0] = value
    (result,) = Fake(**{name: changed}).predict([WHITE])
    assert result.names == ["cat"]
    assert np.isfinite(result.relative_boxes).all() and len(result.rles) == 1
    assert "dropped 1 detection that are not finite" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_prototypes_that_are_no_numbers_leave_no_masks(
    caplog: pytest.LogCaptureFixture, value: float
) -> None:
    prototypes = native_arrays()["prototypes"]
    prototypes[0, 7, 7, 1] = value
    (result,) = Fake(prototypes=prototypes).predict([WHITE])
    assert len(result) == 0 and result.rles == []
    assert "dropped 2 detections that are not finite" in caplog.text


def test_a_network_that_fails_has_not_found_nothing() -> None:
    """As with weights that are not finite: no score exceeds the threshold."""
    prototypes = np.full_like(native_arrays()["prototypes"], np.nan)
    with pytest.raises(YolactError, match="output is not finite"):
        Fake(prototypes=prototypes, count=np.zeros(1, np.int32)).predict([WHITE])


def test_only_numbers_that_no_row_uses_are_harmless(caplog: pytest.LogCaptureFixture) -> None:
    arrays = native_arrays()
    arrays["boxes"][0, 2:] = np.nan
    arrays["scores"][0, 2:] = np.nan
    (result,) = Fake(boxes=arrays["boxes"], scores=arrays["scores"]).predict([WHITE])
    assert result.names == ["dog", "cat"] and not caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": np.full((1, 4), 3, np.int32)}, "class 3, and its metadata names 3;"),
        ({"classes": np.full((1, 4), -1, np.int32)}, "class -1, and its metadata names 3;"),
        ({"count": np.array([5], np.int32)}, r"count \[5\], outside 0\.\.4;"),
        ({"count": np.array([-1], np.int32)}, r"count \[-1\], outside 0\.\.4;"),
        ({"count": np.array([np.nan], np.float32)}, "count as float32, not whole numbers;"),
        ({"classes": np.ones((1, 4), np.float32)}, "classes as float32, not whole numbers;"),
        ({"scores": np.ones((1, 4), np.int32)}, "scores as int32, not floating point;"),
        ({"boxes": np.zeros((1, 3, 4), np.float32)}, r"boxes of shape \(1, 3, 4\), not \(1, 4, 4\);"),
        (
            {"coefficients": np.zeros((1, 4, 9), np.float32)},
            r"coefficients of shape \(1, 4, 9\), not",
        ),
        ({"scores": np.zeros((2, 4), np.float32)}, r"scores of shape \(2, 4\), not \(1, 4\);"),
    ],
)
def test_an_engine_that_contradicts_its_metadata(changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(YolactError, match=f"^the engine returned {message}.* export it again$"):
        Fake(**changes).predict([WHITE])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_that_computes_nan(tmp_path: Path, caplog: pytest.LogCaptureFixture, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    arrays = native_arrays()
    arrays["boxes"][0, 0, 2] = np.nan
    with load_engine(write_onnx(tmp_path / "m.onnx", arrays, NATIVE), backend=backend) as engine:
        results = engine.predict([WHITE, WHITE])
    assert [result.names for result in results] == [["cat"], ["cat"]]
    assert caplog.text.count("dropped 1 detection ") == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        (native_arrays(), NATIVE, "returned class 1, and its metadata names 1"),
        (runtime_arrays(), RUNTIME, "the graph has 3 classes, its metadata 1"),
    ],
)
def test_metadata_of_fewer_classes(
    arrays: dict[str, np.ndarray], metadata: Metadata, message: str, backend: str, tmp_path: Path
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    fewer = dataclasses.replace(metadata, class_names=("cat",), category_ids=(0,))
    path = write_onnx(tmp_path / "m.onnx", arrays, fewer)
    with pytest.raises(YolactError, match=message), load_engine(path, backend=backend) as engine:
        engine.predict([WHITE])
