"""`yolact-bench peers` with contenders that find what the test says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, Found, write_image

from yolact_bench.contender import Contender, Run
from yolact_bench.peers import cli, original, torchvision
from yolact_bench.stages import EngineContender
from yolact_runtime.errors import UsageError, YolactError

BOX, OTHER = (4, 6, 24, 30), (40, 40, 60, 60)
FINDINGS = {1: [Found(BOX), Found(OTHER, 1)], 2: [Found(BOX)]}


class Stub(Contender):
    """Remembers what it was given; finds three instances in every image."""

    name, backend, config, precision, input_size = "stub", "nothing", "none", "fp32", None
    note, licence = "made", "CC0"

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.seen: list[str] = []

    def prepare(self, images: Sequence[Path], batch: int) -> None:
        assert batch == 1

    def alone(self) -> None:
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
    monkeypatch.setattr(cli, "load_engine", lambda path, **options: FakeEngine(FINDINGS))
    limits = ["--seconds", "0.01", "--runs", "5", "--threads", "1"]
    return ["--engine", "ours.onnx", "--images", str(images[0].parent), *limits]


def test_figures_of_two(images: list[Path]) -> None:
    ours, stub = EngineContender("ours", FakeEngine(FINDINGS)), Stub()
    first, second = cli.compare([ours, stub], images, 60, 5)
    assert (first.name, first.network_ratio, first.end_to_end_ratio) == ("ours", 1, 1)
    assert second.end_to_end_ratio == pytest.approx(first.end_to_end.median / second.end_to_end.median)
    assert (second.detections, second.licence, second.note) == (3, "CC0", "made")
    runs = len(stub.seen)  # some to warm up, and five that count
    assert runs > 5 and stub.seen == (["1.png", "2.png"] * runs)[:runs]
    assert second.stages == {"decode": pytest.approx(runs - 2), "network": pytest.approx(250)}
    assert set(first.stages) == {"decode", "preprocess", "network", "masks", "rle"}


def test_ratios_compare_the_same_rounds() -> None:
    """A quick contender leaves late: what the slow one never saw does not count."""
    assert cli._ratio(np.array([4.0, 4.0]), np.array([1.0, 1.0, 9.0, 9.0, 9.0])) == 4


def test_agreement_counts_what_the_second_finds_of_the_first(images: list[Path]) -> None:
    both = EngineContender("a", FakeEngine(FINDINGS))
    fewer = EngineContender("b", FakeEngine({1: [Found(BOX), Found(OTHER, 0)], 2: [Found(BOX)]}))
    assert cli.agree(both, both, images) == {"images": 2, "instances": 3, "matched": 3, "mask_iou": 1.0}
    found = cli.agree(both, fewer, images)
    assert found is not None and (found["instances"], found["matched"]) == (3, 2)
    assert cli.agree(both, Stub(), images) is None


def test_command(options: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    """One peer runs, one is not installed: one line, and the rest goes on."""

    def missing(*arguments: Any) -> Contender:
        raise YolactError("torchvision is not here; run: pip install it")

    class Same(Stub):
        def to_coco(self, path: Path, image_id: int) -> list[dict[str, Any]]:
            return EngineContender("", FakeEngine(FINDINGS)).to_coco(path, image_id)

    monkeypatch.setattr(original, "OriginalContender", Same)
    monkeypatch.setattr(torchvision, "TorchvisionContender", missing)
    path = tmp_path / "peers.json"
    peers = ["--original", "folder", "--weights", "w.pth", "--torchvision", "--json", str(path)]
    assert cli.main([*options, *peers]) == 0
    said = capsys.readouterr()
    assert "left out: torchvision is not here; run: pip install it" in said.err
    assert "ours.onnx finds 3 of 3 instances of stub in 2 images, mask IoU 1.0000" in said.out
    assert "rounded to uint8" in said.out
    figures = json.loads(path.read_text())
    assert figures["schema"] == cli.SCHEMA
    assert [one["name"] for one in figures["contenders"]] == ["ours.onnx", "stub"]
    assert figures["agreement"]["stub"]["matched"] == 3
    assert figures["settings"]["threads"] == 1


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
    assert cli.main([*options, *peers]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, device, expected",
    [
        ("m.onnx", "cpu", {"threads": 3, "providers": ["cpu"]}),
        ("m.onnx", "cuda", {"threads": 3, "providers": ["cuda"]}),
        ("m.pth", "cpu", {"threads": 3, "device": "cpu"}),
        ("m.xml", "cpu", {"threads": 3}),
        ("m.plan", "cuda", {}),
    ],
)
def test_our_engine_runs_where_the_peers_do(name: str, device: str, expected: dict, monkeypatch) -> None:
    monkeypatch.setattr(cli, "load_engine", lambda path, **options: options)
    assert cli._open(name, device, 3) == expected


def test_devices_are_not_mixed() -> None:
    with pytest.raises(
        UsageError, match=r"m\.engine runs on the GPU, the peers on the CPU; give --device cuda"
    ):
        cli._open("m.engine", "cpu", 1)
    with pytest.raises(UsageError, match=r"m\.xml runs on the CPU; leave out --device cuda"):
        cli._open("m.xml", "cuda", 1)


def test_nothing_is_imported_that_was_not_asked_for() -> None:
    script = (
        "import sys, yolact_bench.peers.cli, yolact_bench.peers.ultralytics, yolact_bench.peers.torchvision\n"
        "print(sorted({'torch', 'torchvision', 'ultralytics'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
