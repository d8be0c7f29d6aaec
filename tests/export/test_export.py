"""The exported file against the checkpoint, the oracle, and what is allowed in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import oracle
import pytest
import torch

from yolact.config import Classes
from yolact.engine import TorchEngine
from yolact.model import Yolact
from yolact.model.backbone import DeformConv
from yolact.model.detect import Detections
from yolact.model.head import Head
from yolact.model.preprocess import Normalise
from yolact.registry import get_config
from yolact.settings import override
from yolact.train.checkpoint import save_checkpoint
from yolact.weights.load import load_model
from yolact_export import verify
from yolact_export.cli import main
from yolact_export.graph import GridSampleDeformConv
from yolact_export.onnx import OnnxOptions, check_graph, write_onnx
from yolact_runtime import load_engine
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import sha256


def make_model(name: str = "yolact_tiny", *settings: str) -> Yolact:
    """A network whose random weights find something of every class."""
    torch.manual_seed(2)
    config = override(get_config(name), settings)
    if len(config.classes) > 5:
        config = replace(config, classes=Classes(("a", "b", "c", "d", "e"), (0, 3, 4, 9, 90)))
    model = Yolact(config).eval()
    for module in model.modules():
        if isinstance(module, DeformConv):
            torch.nn.init.normal_(module.conv_offset_mask.weight, std=0.001)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    head, last = model.prediction_layers[0], model.proto_net[10]
    assert isinstance(head, Head)
    assert isinstance(last, torch.nn.Conv2d)
    # As a trained network: outputs of moderate size that differ from prior to prior. Random ones explode,
    # and rounding errors with them; nearly equal ones may fall either way.
    size = config.model.input_size
    images = np.stack([cv2.resize(image, (size, size)) for image in verify.verification_images(None)[:2]])
    x = Normalise(config.model)(torch.from_numpy(images))
    with torch.no_grad():
        model.train()(x)
        output = model.eval()(x)
        head.bbox_layer.weight.mul_(0.5 / output.loc.std())
        head.conf_layer.weight.mul_(2.0 / output.logits.std())
        head.mask_layer.weight.mul_(0.5 / output.coefficients.clamp(-0.999, 0.999).atanh().std())
        last.weight.mul_(2.0 / output.prototypes.std())
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "yolact_tiny_0_1.pth"
    save_checkpoint(path, make_model(), 0, 1, None)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("detect", ["native", "runtime"])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("yolact_tiny", 128),
        ("yolact_resnet50", 128),
        ("yolact_darknet53", 96),
        ("yolact_plus_resnet50", 288),
        ("yolact_mobilenetv2", 128),
    ],
)
def test_every_kind_of_network_is_the_same_in_onnx_runtime(
    name: str, size: int, detect: str, tmp_path: Path
) -> None:
    model = make_model(name, f"model.input_size={size}")
    path = tmp_path / "model.onnx"
    graph = write_onnx(model, path, OnnxOptions(detect=detect, max_batch=3))
    assert {imported.domain for imported in graph.opset_import} <= {"", "ai.onnx"}
    with load_engine(path, providers=["cpu"]) as engine:
        # Untrained masks hover about 0.5, where rounding decides; what they are made of is compared closely.
        seen = verify.compare(
            TorchEngine.from_model(model, "cpu", "uint8"),
            engine,
            verify.verification_images(None),
            verify.Tolerances(mask_iou=0.9),
        )
    assert seen.problems == []
    assert seen.images == 4
    assert seen.matched + seen.flips >= seen.expected > 0


def test_native_graph_is_the_oracle(tmp_path: Path) -> None:
    model = make_model()
    heads, native = tmp_path / "heads.onnx", tmp_path / "native.onnx"
    write_onnx(model, heads, OnnxOptions(detect="runtime"))
    write_onnx(model, native, OnnxOptions())
    batch = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)
    import onnxruntime

    loc, logits, coefficients, prototypes = onnxruntime.InferenceSession(
        heads, providers=["CPUExecutionProvider"]
    ).run(None, {"images": batch})
    expected = oracle.detect(loc[0], logits[0], coefficients[0], model.priors.numpy())
    with load_engine(native, providers=["cpu"]) as engine:
        found = engine.detect(batch)
    n = int(found.count[0])
    assert n == len(expected["scores"]) > 0
    np.testing.assert_array_equal(found.classes[0, :n], expected["classes"])
    np.testing.assert_allclose(found.boxes[0, :n], expected["boxes"], atol=1e-5)
    np.testing.assert_allclose(found.scores[0, :n], expected["scores"], atol=1e-5)
    np.testing.assert_allclose(found.prototypes, prototypes, atol=1e-5)


def test_graph_keeps_to_plain_operators(tmp_path: Path) -> None:
    graph = write_onnx(make_model(), tmp_path / "m.onnx", OnnxOptions(max_batch=8))
    operators = {node.op_type for node in graph.graph.node}
    assert not operators & {"NonMaxSuppression", "NonZero", "Loop", "If", "GridSample"}
    assert [value.name for value in graph.graph.input] == ["images"]
    image = graph.graph.input[0].type.tensor_type
    assert image.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in image.shape.dim] == ["batch", 128, 128, 3]
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in graph.graph.output
    }
    assert shapes["boxes"] == ["batch", 100, 4]
    assert shapes["count"] == ["batch"]


def test_exporting_leaves_the_model_alone(tmp_path: Path) -> None:
    model = make_model("yolact_plus_resnet50", "model.input_size=288").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    write_onnx(model, tmp_path / "m.onnx", OnnxOptions(detect="runtime"))
    assert model.training
    assert any(isinstance(module, DeformConv) for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("stride", [1, 2])
def test_grid_sampling_is_deformable_convolution(stride: int) -> None:
    torch.manual_seed(0)
    layer = DeformConv(5, 7, stride)
    torch.nn.init.normal_(layer.conv_offset_mask.weight, std=0.3)
    x = torch.randn(2, 5, 11, 14)
    torch.testing.assert_close(GridSampleDeformConv(layer)(x), layer(x), rtol=1e-4, atol=1e-4)


def test_command_writes_a_file_that_describes_itself(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.onnx"
    assert (
        main(["--weights", str(checkpoint), "--to", "onnx", "--output", str(output), "--max_batch", "4"]) == 0
    )
    assert "largest difference" in capsys.readouterr().out
    with load_engine(output, providers=["cpu"]) as engine:
        meta = engine.metadata
    assert (meta.min_batch, meta.max_batch, meta.input_size, meta.precision) == (1, 4, 128, "fp32")
    assert meta.class_names == ("circle", "square", "triangle")
    assert meta.weights_sha256 == sha256(checkpoint)
    assert meta.versions["torch"] == torch.__version__
    assert meta.command.startswith("yolact-export")


def test_fixed_batch(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    assert main(["--weights", str(checkpoint), "--output", str(output), "--batch", "3"]) == 0
    with load_engine(output, providers=["cpu"]) as engine:
        images = [np.zeros((20, 30, 3), np.uint8)] * 4
        assert len(engine.predict(images)) == 4
        assert engine.metadata.min_batch == engine.metadata.max_batch == 3


def test_float_input_is_the_checkpoint_exactly_as_evaluated(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    assert main(["--weights", str(checkpoint), "--output", str(output), "--input-type", "float32"]) == 0
    picture = np.random.default_rng(1).integers(0, 256, (77, 91, 3), dtype=np.uint8)
    results = []
    for path, options in ((checkpoint, {}), (output, {"providers": ["cpu"]})):
        with load_engine(path, **options) as engine:
            results.append(engine.predict([picture], score_threshold=0, top_k=100)[0])
    np.testing.assert_array_equal(results[0].classes, results[1].classes)
    np.testing.assert_allclose(results[0].scores, results[1].scores, atol=1e-5)


def test_a_file_that_differs_is_not_left_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "yolact_tiny_0_2.pth"
    model = load_model(checkpoint)
    with torch.no_grad():
        model.proto_net[0].weight[0] += 0.1
    save_checkpoint(other, model, 0, 2, None)
    reference = TorchEngine(other, device="cpu", input_dtype="uint8")
    monkeypatch.setattr(verify, "reference_engine", lambda *_, **__: reference)
    output = tmp_path / "out" / "model.onnx"
    assert main(["--weights", str(checkpoint), "--output", str(output)]) == 1
    assert "verification failed" in capsys.readouterr().err
    assert list(tmp_path.glob("out/*")) == []


def test_verification_without_any_detection() -> None:
    model = make_model("yolact_tiny", "detect.score_threshold=0.99")
    torch.nn.init.zeros_(model.prediction_layers[0].conf_layer.weight)  # type: ignore[union-attr]
    reference, engine = (TorchEngine.from_model(model, "cpu", "uint8") for _ in range(2))
    seen = verify.compare(reference, engine, verify.verification_images(None)[:2])
    assert (seen.expected, seen.found, seen.problems) == (0, 0, [])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scores": 1e-3}, "scores differ"),
        ({"boxes": 5e-4}, "boxes differ"),
        ({"prototypes": 1.0}, "prototypes differ"),
        ({"classes": 1}, "missing detection"),
    ],
)
def test_verification_sees_small_differences(change: dict[str, float], word: str) -> None:
    model = make_model()
    reference, engine = (TorchEngine.from_model(model, "cpu", "uint8") for _ in range(2))
    right = engine.detect

    def wrong(batch: np.ndarray) -> Detections:
        found = right(batch)
        return found._replace(**{name: getattr(found, name) + value for name, value in change.items()})

    engine.detect = wrong  # type: ignore[method-assign, assignment]
    seen = verify.compare(reference, engine, verify.verification_images(None)[:1])
    assert any(word in problem for problem in seen.problems)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--batch", "0"], 2, "batch 0"),
        (["--batch", "4", "--max-batch", "2"], 2, "larger than max_batch 2"),
        (["--verify", "nowhere"], 2, "nowhere"),
        (["--to", "caffe"], 2, "'caffe'; allowed"),
    ],
)
def test_wrong_use(
    arguments: list[str],
    code: int,
    words: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "model.onnx"
    assert main(["--weights", str(checkpoint), "--output", str(output), *arguments]) == code
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_nms_without_a_fixed_shape_is_refused(tmp_path: Path) -> None:
    model = make_model("yolact_tiny", "detect.nms=traditional")
    with pytest.raises(UsageError, match="allows fast, cross_class"):
        write_onnx(model, tmp_path / "m.onnx", OnnxOptions())


def test_cross_class_nms_in_the_graph(tmp_path: Path) -> None:
    model = make_model("yolact_tiny", "detect.nms=cross_class")
    path = tmp_path / "m.onnx"
    write_onnx(model, path, OnnxOptions())
    with load_engine(path, providers=["cpu"]) as engine:
        reference = TorchEngine.from_model(model, "cpu", "uint8")
        assert verify.compare(reference, engine, verify.verification_images(None)).problems == []


def broken_graph(operator: str, domain: str = "") -> onnx.ModelProto:
    make = onnx.helper
    value = make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4000])
    nodes, initializers = [], []
    if operator == "TopK":
        nodes.append(make.make_node("TopK", ["x", "k"], ["y", "i"], name="pick"))
        initializers.append(onnx.numpy_helper.from_array(np.array([3900]), "k"))
        out = make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3900])
    elif operator == "NonZero":
        nodes.append(make.make_node("NonZero", ["x"], ["y"], name="pick"))
        out = make.make_tensor_value_info("y", onnx.TensorProto.INT64, [1, None])
    else:
        nodes.append(make.make_node(operator, ["x"], ["y"], name="pick", domain=domain))
        out = make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4000])
    imports = [make.make_opsetid("", 17)] + ([make.make_opsetid(domain, 1)] if domain else [])
    return make.make_model(make.make_graph(nodes, "g", [value], [out], initializers), opset_imports=imports)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (broken_graph("TopK"), "k is 3900"),
        (broken_graph("NonZero"), "shapes depend on data"),
        (broken_graph("Mystery", "com.example"), "domain com.example"),
    ],
    ids=["topk", "nonzero", "domain"],
)
def test_forbidden_graphs_are_named(graph: onnx.ModelProto, words: str) -> None:
    with pytest.raises(YolactError, match=f"node pick .*{words}"):
        check_graph(graph)


@pytest.mark.slow
def test_real_images(coco_mini: object, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    images = coco_mini.val_images  # type: ignore[attr-defined]
    assert main(["--weights", str(checkpoint), "--output", str(output), "--verify", str(images)]) == 0
