"""Verification of models that find nothing, and of files that are wrong where nothing is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fake_engine import FakeEngine
from onnx import numpy_helper

from yolact.engine import TorchEngine
from yolact.model import Yolact
from yolact.settings import override
from yolact.train.checkpoint import save_checkpoint
from yolact_export import verify
from yolact_export.cli import main
from yolact_export.onnx import OnnxOptions, write_onnx
from yolact_export.onnx_graph import HEADS
from yolact_export.openvino import verify_openvino, write_openvino
from yolact_export.precision.agreement import compare_detections
from yolact_export.stages import Stages
from yolact_runtime.detections import Detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.engines.openvino import OpenVinoEngine
from yolact_runtime.errors import YolactError

IMAGES = verify.verification_images(None)


def silent(network: Yolact, threshold: float = 0.9) -> Yolact:
    """`network` with lower scores, and a threshold that none of them reaches in `IMAGES`."""
    model = Yolact(override(network.config, [f"detect.score_threshold={threshold}"])).eval()
    model.load_state_dict(network.state_dict())
    with torch.no_grad():
        model.prediction_layers[0].conf_layer.weight.mul_(0.1)  # type: ignore[union-attr, operator]
    return model


@pytest.fixture(scope="module", params=["native", "runtime"])
def exported(
    request: pytest.FixtureRequest, network: Yolact, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Yolact, Path]:
    model, path = silent(network), tmp_path_factory.mktemp("silent") / "m.onnx"
    write_onnx(model, path, OnnxOptions(detect=request.param, max_batch=3))
    return model, path


def changed(path: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    graph = onnx.load(path)
    change(graph)
    onnx.save(graph, target)
    return target


def scale_weights(word: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    """Multiply the weights whose name contains `word`."""

    def change(graph: onnx.ModelProto) -> None:
        found = [one for one in graph.graph.initializer if word in one.name and one.name.endswith("weight")]
        assert found
        for one in found:
            values = (numpy_helper.to_array(one) * factor).astype(np.float32)
            one.CopyFrom(numpy_helper.from_array(values, one.name))

    return change


def compared(model: Yolact, path: Path) -> verify.Comparison:
    with OnnxRuntimeEngine(path) as engine:
        return verify.compare(TorchEngine.from_model(model, "cpu", "uint8"), engine, IMAGES)


def test_heads_and_prepared_detections_are_compared_where_nothing_is_found(
    exported: tuple[Yolact, Path],
) -> None:
    seen = compared(*exported)
    assert (seen.expected, seen.found, seen.matched, seen.problems) == (0, 0, 0, [])
    assert {f"head {name}" for name in HEADS} <= set(seen.differences)
    assert seen.prepared > 20  # of 50 in one image, some of which overlap


@pytest.mark.parametrize("factor", [0.0, 1.1, np.nan])
@pytest.mark.parametrize("head", ["conf_layer", "bbox_layer", "mask_layer"])
def test_a_wrong_head_is_seen_where_nothing_is_found(
    exported: tuple[Yolact, Path], tmp_path: Path, head: str, factor: float
) -> None:
    path = changed(exported[1], tmp_path / "m.onnx", scale_weights(head, factor))
    seen = compared(exported[0], path)
    assert not seen.matched
    name = {"conf_layer": "logits", "bbox_layer": "loc", "mask_layer": "coefficients"}[head]
    assert seen.problems[0].startswith(f"head {name} ")
    assert ("not finite" in seen.problems[0]) == np.isnan(factor)


def test_a_wrong_detection_is_seen_where_nothing_is_found(
    exported: tuple[Yolact, Path], tmp_path: Path
) -> None:
    """The heads are right; too few of the overlapping boxes are removed."""

    def raise_iou(graph: onnx.ModelProto) -> None:
        props = {prop.key: prop for prop in graph.metadata_props}
        if props["yolact.detect"].value == '"runtime"':
            props["yolact.iou_threshold"].value = "0.99"
            return
        (node,) = [node for node in graph.graph.node if node.op_type == "LessOrEqual"]
        graph.graph.initializer.append(numpy_helper.from_array(np.array(0.99, np.float32), "iou"))
        node.input[1] = "iou"

    seen = compared(exported[0], changed(exported[1], tmp_path / "m.onnx", raise_iou))
    assert seen.problems
    assert all(problem.startswith("prepared image") and "extra" in problem for problem in seen.problems)


def test_detections_are_not_prepared_where_there_are_enough(network: Yolact, tmp_path: Path) -> None:
    write_onnx(network, tmp_path / "m.onnx", OnnxOptions())
    seen = compared(network, tmp_path / "m.onnx")
    assert (seen.problems, seen.prepared) == ([], 0)
    assert seen.matched > 0
    assert "head logits" in seen.differences


def test_a_threshold_that_nothing_can_exceed(network: Yolact, tmp_path: Path) -> None:
    model = silent(network, 0.99999999)
    write_onnx(model, tmp_path / "m.onnx", OnnxOptions())
    assert compared(model, tmp_path / "m.onnx").problems == [
        "no detection was compared: none scores above 0.99999999 in 4 images"
    ]


def test_engines_whose_heads_are_not_known(network: Yolact) -> None:
    """Engines on a GPU, for example."""
    reference = TorchEngine.from_model(silent(network), "cpu", "uint8")

    class Other(Engine):
        metadata = reference.metadata

        def detect(self, batch: np.ndarray) -> Detections:
            return reference.detect(batch)

    seen = verify.compare(reference, Other(), IMAGES)
    assert seen.problems == ["no detection was compared: none scores above 0.9 in 4 images"]


def test_values_that_are_not_finite_on_both_sides(network: Yolact, tmp_path: Path) -> None:
    """A training that diverged: nan equals nothing, and no detection is left to compare."""
    model = silent(network)
    with torch.no_grad():
        model.prediction_layers[0].conf_layer.bias[1] = torch.nan  # type: ignore[union-attr, index]
    write_onnx(model, tmp_path / "m.onnx", OnnxOptions())
    assert "head logits are not finite" in compared(model, tmp_path / "m.onnx").problems


@pytest.fixture
def silent_checkpoint(network: Yolact, tmp_path: Path) -> Path:
    path = tmp_path / "yolact_tiny_0_1.pth"
    save_checkpoint(path, silent(network), 0, 1, None)
    return path


@pytest.mark.parametrize("options", [["--detect", "native"], ["--detect", "runtime"], ["--batch", "2"]])
def test_the_command_warns_that_nothing_was_found(
    silent_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    output = tmp_path / "m.onnx"
    assert main(["--weights", str(silent_checkpoint), "--output", str(output), *options]) == 0
    printed = capsys.readouterr()
    assert "nothing scores above 0.9 in the 4 images" in printed.err
    assert "detections of prepared heads" in printed.out


def test_the_command_fails_if_nothing_can_be_compared(
    network: Yolact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, output = tmp_path / "yolact_tiny_0_1.pth", tmp_path / "m.onnx"
    save_checkpoint(weights, silent(network, 0.99999999), 0, 1, None)
    assert main(["--weights", str(weights), "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert "no detection was compared" in error
    assert "--verify DIR" in error
    assert "--no-verify" in error
    assert not output.exists()
    assert main(["--weights", str(weights), "--output", str(output), "--no-verify"]) == 0


@pytest.mark.slow
def test_openvino_is_compared_where_nothing_is_found(
    exported: tuple[Yolact, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    right, wrong = tmp_path / "right.xml", tmp_path / "wrong.xml"
    write_openvino(exported[1], right)
    verify_openvino(exported[1], IMAGES, right)
    assert "nothing scores above" in caplog.text
    write_openvino(changed(exported[1], tmp_path / "m.onnx", scale_weights("conf_layer", 0)), wrong)
    with pytest.raises(YolactError, match="head logits differ by"):
        verify_openvino(exported[1], IMAGES, wrong)
    with OpenVinoEngine(exported[1]) as engine:  # the ONNX file in OpenVINO
        reference = TorchEngine.from_model(exported[0], "cpu", "uint8")
        assert verify.compare(reference, engine, IMAGES).problems == []


@pytest.mark.parametrize(("factor", "broken"), [(1.0, False), (1.01, False), (0.0, True)])
def test_a_reduced_model_without_detections(
    exported: tuple[Yolact, Path], tmp_path: Path, factor: float, broken: bool
) -> None:
    other = changed(exported[1], tmp_path / "m.onnx", scale_weights("conf_layer", factor))
    with OnnxRuntimeEngine(exported[1]) as reference, OnnxRuntimeEngine(other) as engine:
        seen = compare_detections(reference, engine, IMAGES)
    assert (seen.expected, seen.found) == (0, 0)
    assert bool(seen.problem) == broken
    assert not broken or "heads of the network differ" in seen.problem


def test_a_reduced_model_that_finds_things_that_are_not_there(network: Yolact, tmp_path: Path) -> None:
    """float32 finds nothing, so no share of its detections can be missed."""
    paths = [tmp_path / "float.onnx", tmp_path / "reduced.onnx"]
    for model, path in zip((silent(network), network), paths, strict=True):
        write_onnx(model, path, OnnxOptions())
    with OnnxRuntimeEngine(paths[0]) as reference, OnnxRuntimeEngine(paths[1]) as engine:
        assert "are not in float32's" in compare_detections(reference, engine, IMAGES).problem


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_reduced_export_without_detections(
    silent_checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    output = tmp_path / "m.onnx"
    more = ["--precision", precision, "--calibrate", str(photos)]
    assert main(["--weights", str(silent_checkpoint), "--output", str(output), *more]) == 0
    text = "only 0 detections score 0.3 or more in the 4 images"
    assert text in capsys.readouterr().err
    if precision == "int8":
        xml = tmp_path / "m.xml"
        assert main(["--weights", str(output), "--to", "openvino", "--output", str(xml)]) == 0


class TwoBoxes(FakeEngine):
    """Finds a box, and a second one if its head is above a threshold."""

    def __init__(self, head: float, threshold: float) -> None:
        super().__init__({})
        self.stages = Stages(lambda batch: {"logits": np.full((len(batch), 1), head)}, self.detection)
        self.threshold = threshold

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        return self.detection(self.stages.network(batch))

    def detection(self, heads: Mapping[str, np.ndarray]) -> Detections:
        both = heads["logits"][:, 0] > self.threshold
        n = len(both)
        scores = np.tile(np.float32([0.7, 0.6, 0]), (n, 1))
        return Detections(
            count=1 + both.astype(np.int32),
            boxes=np.tile(np.float32([[0.2, 0.2, 0.8, 0.8], [0, 0, 0.4, 0.4], [0, 0, 0, 0]]), (n, 1, 1)),
            scores=scores,
            classes=np.zeros((n, 3), np.int32),
            coefficients=np.ones((n, 3, 4), np.float32),
            prototypes=np.ones((n, 8, 8, 4), np.float32),
            mask_scores=scores,
        )


def compared_stages(
    monkeypatch: pytest.MonkeyPatch, reference: TwoBoxes, engine: TwoBoxes
) -> verify.Comparison:
    monkeypatch.setattr(verify, "stages_of", lambda *engines: tuple(one.stages for one in engines))
    return verify.compare(reference, engine, IMAGES)


@pytest.mark.parametrize("side", [-1e-6, 1e-6])
def test_a_detection_that_rounding_of_the_heads_decides_is_no_problem(
    monkeypatch: pytest.MonkeyPatch, side: float
) -> None:
    seen = compared_stages(monkeypatch, TwoBoxes(0.5 + side, 0.5), TwoBoxes(0.5 - side, 0.5))
    assert (seen.matched, seen.flips, seen.problems) == (len(IMAGES), len(IMAGES), [])


@pytest.mark.parametrize(
    ("head", "threshold", "problem"),
    [(0.499, 0.4, "extra"), (0.499, 0.5, None), (0.55, 0.5, "head logits")],
)
def test_a_detection_that_something_else_decides_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, head: float, threshold: float, problem: str | None
) -> None:
    """The other engine has another threshold, or its head is beyond the tolerance."""
    seen = compared_stages(monkeypatch, TwoBoxes(0.499, 0.5), TwoBoxes(head, threshold))
    assert bool(seen.problems) == (problem is not None)
    assert problem is None or any(problem in line for line in seen.problems)
