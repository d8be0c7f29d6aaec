"""`yolact-bench peers` with candidates that find what the test says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fake_engine import FakeEngine, Found, write_image

from yolact_bench import cli
from yolact_bench.measure.accuracy import agree
from yolact_bench.measure.candidate import Candidate, Run
from yolact_bench.measure.stages import EngineCandidate
from yolact_bench.peers import original, torchvision
from yolact_runtime.engines.choose import choose_for_cpu
from yolact_runtime.errors import YolactError

BOX, OTHER = (4, 6, 24, 30), (40, 40, 60, 60)
FINDINGS = {1: [Found(BOX), Found(OTHER, 1)], 2: [Found(BOX)]}


class Stub(Candidate):
    """Remembers what it was given; finds three instances in every image."""

    name, backend, config, precision, input_size = "stub", "nothing", "none", "fp32", None
    note, licence = "made", "CC0"

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.seen: list[str] = []

    def prepare(self, images: Sequence[Path], batch: int) -> None:
        assert batch == 1

    def network_only(self) -> None:
        pass

    def end_to_end(self, paths: Sequence[Path]) -> Run:
        self.seen += [path.name for path in paths]
        return Run({"decode": 0.001 * len(self.seen), "network": 0.25}, 3)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    for shade in (1, 2):
        write_image(tmp_path / "images" / f"{shade}.png", shade)
    return sorted((tmp_path / "images").iterdir())


@pytest.fixture
def options(images: list[Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(
        "yolact_bench.measure.engines.load_engine", lambda path, **options: FakeEngine(FINDINGS)
    )
    limits = ["--seconds", "0.01", "--runs", "5", "--threads", "1"]
    return ["--engine", "ours.onnx", "--images", str(images[0].parent), *limits]


def test_agreement_counts_what_the_second_finds_of_the_first(images: list[Path]) -> None:
    both = EngineCandidate("a", FakeEngine(FINDINGS))
    fewer = EngineCandidate("b", FakeEngine({1: [Found(BOX), Found(OTHER, 0)], 2: [Found(BOX)]}))
    assert agree(both, both, images) == {"images": 2, "instances": 3, "matched": 3, "mask_iou": 1.0}
    found = agree(both, fewer, images)
    assert found is not None and (found["instances"], found["matched"]) == (3, 2)
    assert agree(both, Stub(), images) is None


def test_command(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One peer runs next to two engines, one is not installed: one line, exit code 1, the rest goes on."""

    def missing(*arguments: Any) -> Candidate:
        raise YolactError("torchvision is not here; run: pip install it")

    class Same(Stub):
        def to_coco(self, path: Path, image_id: int) -> list[dict[str, Any]]:
            return EngineCandidate("", FakeEngine(FINDINGS)).to_coco(path, image_id)

    monkeypatch.setattr(original, "OriginalCandidate", Same)
    monkeypatch.setattr(torchvision, "TorchvisionCandidate", missing)
    path, page = tmp_path / "peers.json", tmp_path / "peers.html"
    peers = ["--original", "folder", "--weights", "w.pth", "--torchvision"]
    more = ["--engine", "other.xml:threads=2,name=second", "--json", str(path), "--report", str(page)]
    assert cli.main(["peers", *options, *peers, *more]) == 1
    said = capsys.readouterr()
    assert "left out: torchvision is not here; run: pip install it" in said.err
    for word in ("CC0", "stub: made", "Network only", "Stages of end to end"):
        assert word in said.out
    for name in ("ours.onnx", "second"):
        assert f"{name}: matches 3 of 3 instances of stub in 2 images, mask IoU 1.0000" in said.out
        assert f"{name}: input rounded to uint8" in said.out
    figures = json.loads(path.read_text())
    jsonschema.validate(
        figures, json.loads(resources.files("yolact_bench.report").joinpath("schema.json").read_text())
    )
    assert [one["name"] for one in figures["engines"]] == ["ours.onnx", "second", "stub"]
    assert [one["licence"] for one in figures["engines"]] == ["", "", "CC0"]
    expected = {"with": "stub", "images": 2, "instances": 3, "matched": 3, "mask_iou": 1.0}
    assert [one["agreement"] for one in figures["engines"]] == [expected, expected, None]
    assert figures["settings"]["threads"] == 1
    ratios = [one["batches"][0]["end_to_end"]["ratio"] for one in figures["engines"]]
    assert ratios[0]["value"] == 1  # they refer to the first engine
    assert None not in ratios
    assert "CC0" in page.read_text() and "matches 3 of 3 instances of stub" in page.read_text()


def test_a_peer_that_dies_at_its_first_image_is_left_out(options: list[str], monkeypatch, capsys) -> None:
    class Dead(Stub):
        def prepare(self, images: Sequence[Path], batch: int) -> None:
            raise YolactError("the original ended: no module named this")

    monkeypatch.setattr(original, "OriginalCandidate", Dead)
    monkeypatch.setattr(torchvision, "TorchvisionCandidate", Stub)
    assert cli.main(["peers", *options, "--original", "folder", "--weights", "w.pth", "--torchvision"]) == 1
    assert "left out: the original ended: no module named this" in capsys.readouterr().err


def test_peers_have_names_of_their_own(options: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr(torchvision, "TorchvisionCandidate", Stub)
    assert cli.main(["peers", *options, "--engine", "other.onnx:name=stub", "--torchvision"]) == 2
    assert "2 engines are called stub; give them names: E:name=NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    "peers, code, message",
    [
        ([], 2, "no peer was asked for; give --torchvision"),
        (["--original", "folder"], 2, "--original needs --weights W"),
        (["--original", "folder", "--weights", "none.pth"], 2, "the original has no configuration fake"),
        (["--ultralytics", "model.pt"], 2, "give a YAML"),
        (["--torchvision-weights", "none.pth"], 1, "none of the peers that were asked for can run here"),
        (["--torchvision", "--threads", "0"], 2, "--threads is 0; it must be 1 or more"),
    ],
)
def test_wrong_use_is_one_line(options: list[str], peers: list[str], code: int, message: str, capsys) -> None:
    assert cli.main(["peers", *options, *peers]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "engine, device, expected",
    [
        ("m.onnx:backend=openvino", "cpu", {"threads": 1, "backend": "openvino"}),
        ("m.onnx", "cpu", {"threads": 1, "backend": choose_for_cpu("")[0]}),
        ("m.onnx:precision=bf16", "cpu", {"threads": 1, "backend": "openvino", "precision": "bf16"}),
        ("m.onnx", "cuda", {"threads": 1, "providers": ("cuda",)}),
        ("m.pth:threads=2", "cpu", {"threads": 2, "device": "cpu"}),
        ("m.xml", "cpu", {"threads": 1}),
        ("m.plan", "cuda", {}),
    ],
)
def test_our_engine_runs_where_the_peers_do(
    images: list[Path], engine: str, device: str, expected: dict, monkeypatch
) -> None:
    asked = []

    class OnDevice(FakeEngine):
        name = f"Fake {device}"

    monkeypatch.setattr(
        "yolact_bench.measure.engines.load_engine",
        lambda path, **options: asked.append(options) or OnDevice(FINDINGS),
    )
    monkeypatch.setattr(torchvision, "TorchvisionCandidate", Stub)
    options = ["--images", str(images[0].parent), "--seconds", "0.01", "--threads", "1", "--torchvision"]
    assert cli.main(["peers", "--engine", engine, *options, "--device", device]) == 0
    assert asked == [expected]


@pytest.mark.parametrize(
    "backend, device, message",
    [
        ("TensorRT 10", "cpu", "m.engine runs on the GPU, the peers on the CPU; give --device cuda"),
        ("OpenVINO CPU", "cuda", "m.engine runs on the CPU (OpenVINO CPU); leave out --device cuda"),
    ],
)
def test_devices_are_not_mixed(
    options: list[str], backend: str, device: str, message: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(FakeEngine, "name", backend)
    assert cli.main(["peers", *options[2:], "--engine", "m.engine", "--torchvision", "--device", device]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_imported_that_was_not_asked_for() -> None:
    script = (
        "import sys, yolact_bench.peers.cli, yolact_bench.peers.ultralytics, yolact_bench.peers.torchvision\n"
        "print(sorted({'torch', 'torchvision', 'ultralytics'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
