"""`yolact-export --precision ...` and `yolact-export inspect`, from files to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from yolact.engine import TorchEngine
from yolact.model import Yolact
from yolact_export import verify
from yolact_export.cli import main
from yolact_export.precision import agreement, reduce, sensitivity
from yolact_export.precision.compute import LayerCompute, delivered, layer_compute
from yolact_export.precision.sensitivity import Bounds
from yolact_runtime import load_engine
from yolact_runtime.engines.tensorrt.record import EngineRecord, record_path, to_json
from yolact_runtime.files import sha256, write_json
from yolact_runtime.metadata import Metadata

Capture = pytest.CaptureFixture[str]


def export(checkpoint: Path, output: Path, *more: str) -> int:
    return main(["--weights", str(checkpoint), "--output", str(output), *more])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_export(precision: str, checkpoint: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "m.onnx"
    if precision == "fp16":
        more = ["--verify", str(photos)]
    else:
        # Detections of a network that was never trained turn on roundings: nothing to match.
        more = ["--calibrate", str(photos), "--keep-float", "auto,head.boxes", "--no-verify"]
    code = export(checkpoint, output, "--precision", precision, "--max-batch", "2", *more)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    last = "matched by one of 0.15 or more (same class" if precision == "fp16" else "Sensitivity"
    for words in (f"{precision} against float32, tensor by tensor", "head.classes", last):
        assert words in shown.out
    with load_engine(output, providers=["cpu"]) as engine:
        assert engine.metadata.precision == precision
        assert len(engine.predict(verify.verification_images(None)[:3])) == 3
    assert main(["inspect", str(output)]) == 0
    printed = capsys.readouterr().out
    int8 = ["int8 9", "float32 100.0%", "40 of 46 convolutions"]
    kinds = ["float16 100.0%"] if precision == "fp16" else int8
    for words in ("yolact_tiny", "(batch, 128, 128, 3)", "GFLOPs", *kinds):
        assert words in printed


@pytest.mark.slow
def test_less_than_asked_is_refused(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (reduce, sensitivity):
        monkeypatch.setitem(module.BOUNDS, "int8", Bounds(0.0, 0.0))
    output = tmp_path / "m.onnx"
    more = ["--precision", "int8", "--calibrate", str(photos), "--no-verify"]
    assert export(checkpoint, output, *more) == 1
    assert "only 0.0% of the compute" in capsys.readouterr().err
    assert not output.exists()
    assert export(checkpoint, output, *more, "--allow-fallback") == 0
    assert "accepted, and called fp32" in capsys.readouterr().err
    with load_engine(output, providers=["cpu"]) as engine:
        assert engine.metadata.precision == "fp32"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--precision", "int8"], 2, "needs --calibrate DIR"),
        (["--precision", "int8", "--calibrate", "nowhere", "--no-verify"], 2, "nowhere does not exist"),
        (
            ["--precision", "fp16", "--keep-float", "hat", "--no-verify"],
            2,
            "backbone.stem, backbone.layers.0",
        ),
        (["--precision", "fp8"], 2, "'fp8'; allowed: fp32, fp16, int8"),
        (["--annotations", "a.json"], 2, "needs --precision"),
        (["--precision", "fp16", "--annotations", "a.json"], 2, "needs --verify"),
    ],
)
def test_wrong_use(
    arguments: list[str], code: int, words: str, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "m.onnx"
    assert export(checkpoint, output, *arguments) == code
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not output.exists()


def test_inspecting_what_is_no_model(graph: onnx.ModelProto, tmp_path: Path, capsys: Capture) -> None:
    whole = graph.SerializeToString()
    for name, content in (
        ("cut.onnx", whole[: len(whole) // 2]),
        ("text.onnx", b"hello"),
        ("none.onnx", b""),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert main(["inspect", str(path)]) == 1
        error = capsys.readouterr().err
        assert f"{name} is damaged or not an ONNX file" in error and len(error.splitlines()) == 1
    (tmp_path / "a.xyz").touch()
    for name, words in (("nowhere.onnx", "is not a file"), ("a.xyz", "unknown suffix")):
        assert main(["inspect", str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err


def test_inspecting_engines_and_checkpoints(
    checkpoint: Path, metadata: Metadata, network: Yolact, tmp_path: Path, capsys: Capture
) -> None:
    engine = tmp_path / "m.engine"
    engine.touch()
    assert main(["inspect", str(engine)]) == 1
    assert "m.engine.json" in capsys.readouterr().err
    record = EngineRecord(
        *("tensorrt", "11.4.0", ("8.6",), "a GPU", "13.0", (1, 4, 4), {"fp32": 3}, "network"),
        *(sha256(engine), 0, "m.onnx"),
    )
    write_json(record_path(engine), to_json(metadata, record))
    assert main(["inspect", str(engine)]) == 0
    printed = capsys.readouterr().out
    assert "yolact_tiny" in printed and "11.4.0" in printed
    engine.write_bytes(b"another engine")
    assert main(["inspect", str(engine)]) == 1
    assert "engine_bytes is 0" in capsys.readouterr().err
    assert main(["inspect", str(checkpoint)]) == 0
    assert f"{sum(p.numel() for p in network.parameters()):,}" in capsys.readouterr().out


def test_compute_is_what_the_network_does(graph: onnx.ModelProto, network: Yolact) -> None:
    counted = []
    hooks = [
        module.register_forward_hook(lambda m, _, out: counted.append(out.numel() * m.weight[0].numel()))
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        network(torch.zeros(1, 3, 128, 128))
    for hook in hooks:
        hook.remove()
    layers = layer_compute(graph)
    assert sorted(layer.macs for layer in layers) == sorted(counted)
    assert {layer.kind for layer in layers} == {"float32"}


def test_delivered_counts_compute_not_layers() -> None:
    layers = [
        LayerCompute("a", "fpn", "int8", 700),
        LayerCompute("b", "protonet", "float32", 290),
        LayerCompute("c", "head.boxes", "float16", 10),
    ]
    assert delivered(layers, "int8")[0] == "int8"
    assert "only 70.0%" in delivered(layers, "int8")[1]
    assert delivered(layers, "int8", ["protonet"]) == ("int8", "")
    assert delivered(layers, "fp16")[0] == "int8"
    assert delivered([], "fp16")[0] == "fp32"
    hidden = [*layers, LayerCompute("x", "backbone.stem", "float32", 0)]
    assert "1 layer of unknown shape" in delivered(hidden, "int8", ["protonet"])[1]
    assert delivered(hidden, "int8", ["protonet", "backbone.stem"])[1] == ""


def test_agreement_of_a_network_with_itself_and_with_a_broken_one(network: Yolact) -> None:
    same = [TorchEngine.from_model(network, "cpu", "uint8") for _ in range(2)]
    images = verify.verification_images(None)[:2]
    seen = agreement.compare_detections(*same, images)
    assert seen.expected == seen.found == seen.matched >= agreement.MIN_DETECTIONS
    assert (seen.extra, seen.problem) == (0, "")
    assert np.mean(seen.mask_iou) == np.mean(seen.box_iou) == 1
    right = same[1].detect

    def wrong(batch: np.ndarray):  # type: ignore[no-untyped-def]
        found = right(batch)
        return found._replace(scores=0 * found.scores)

    same[1].detect = wrong  # type: ignore[method-assign]
    seen = agreement.compare_detections(*same, images)
    assert (seen.expected, seen.matched, seen.found) == (200, 0, 0)
    assert "only 0 of" in seen.problem
