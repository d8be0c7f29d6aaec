"""`yolact-bench` with engines that find what the test says. No test looks at how long anything takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine, Found, write_image

from yolact_bench import cli, cold, machine
from yolact_bench.suite import SCHEMA, STAGES, Settings, made_image, measure
from yolact_runtime.errors import UsageError
from yolact_runtime.sources.images import read_image

BOX = (4, 6, 24, 30)
QUICK = Settings(seconds=0.01, runs=6)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three images; `FINDINGS` has 2, 1 and 0 instances in them."""
    for shade in (1, 2, 3):
        write_image(tmp_path / "images" / f"{shade}.png", shade)
    return sorted((tmp_path / "images").iterdir())


FINDINGS = {1: [Found(BOX), Found(BOX, 1, 0.05)], 2: [Found(BOX)]}


class Recorder(FakeEngine):
    """Remembers the shades it was shown, batch by batch."""

    def detect(self, batch):
        self.__dict__.setdefault("seen", []).append(batch[:, 0, 0, 0].tolist())
        return super().detect(batch)


def test_report_of_two_engines(images: list[Path]) -> None:
    engines = {"a": FakeEngine(FINDINGS), "b": FakeEngine({})}
    report = measure(engines, images, QUICK, {"a": {"load_ms": 1.0}})
    a, b = report.engines
    assert (a.name, a.backend, a.config, a.precision, a.input_size) == ("a", "FakeEngine", "fake", "fp32", 32)
    assert a.detect_ratio == a.end_to_end_ratio == 1
    assert b.detect_ratio == pytest.approx(a.detect.median / b.detect.median)
    assert tuple(a.stages) == STAGES
    # The stages of a run lie within it.
    assert 0 < sum(timing.mean for timing in a.stages.values()) <= a.end_to_end.mean
    assert (a.cold, b.cold) == ({"load_ms": 1.0}, None)
    assert (a.detections > 0, b.detections) == (True, 0)


def test_all_engines_see_the_same_images_in_turn(images: list[Path]) -> None:
    engines = {name: Recorder(FINDINGS, max_batch=2) for name in "ab"}
    measure(engines, images, Settings(batch=2, seconds=60, runs=5))
    assert engines["a"].seen == engines["b"].seen
    assert engines["a"].seen[:3] == [[1, 2], [3, 1], [1, 2]]  # alone: two batches cover the images
    assert engines["a"].seen[-8:][:4] == [[1, 2], [3, 1], [2, 3], [1, 2]]  # end to end: endless


def test_threshold_and_top_k_limit_the_masks(images: list[Path]) -> None:
    def found(**settings) -> float:
        report = measure({"a": FakeEngine(FINDINGS)}, images[:1], Settings(seconds=0.01, runs=5, **settings))
        return report.engines[0].detections

    assert (found(), found(score_threshold=0.1), found(top_k=1)) == (2, 1, 1)


def test_a_batch_the_engine_does_not_take(images: list[Path]) -> None:
    with pytest.raises(UsageError, match="a takes batches of 1 to 1 images, not 2"):
        measure({"a": FakeEngine({})}, images, Settings(batch=2))
    with pytest.raises(UsageError, match="no images"):
        measure({"a": FakeEngine({})}, [])


def test_machine() -> None:
    described = machine.describe_machine()
    assert described["cpu"]
    assert described["cores"] >= 1
    assert re.match(r"\d+\.", described["versions"]["numpy"])
    assert json.loads(json.dumps(described)) == described
    before = machine.peak_memory()
    if before is not None:
        block = bytearray(64 * 1024 * 1024)
        block[::4096] = b"x" * len(block[::4096])
        assert machine.peak_memory() >= max(before, 64)


def test_made_image_is_the_same_every_time(tmp_path: Path) -> None:
    for name in "ab":
        made_image(tmp_path / f"{name}.jpg")
    assert read_image(tmp_path / "a.jpg").shape == (480, 640, 3)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()


def test_cold_start_prints_its_figures(
    images: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(
        "yolact_runtime.load_engine", lambda path, **options: asked.append((path, options)) or FakeEngine({})
    )
    assert cold.main(["e.onnx", str(images[0]), "2"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"import_ms", "load_ms", "first_ms", "peak_mib"}
    assert asked == [("e.onnx", {"threads": 2})]


def test_cold_start_that_fails_is_a_warning(images: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    assert cold.cold_start("missing.onnx", images[0]) is None
    assert "missing.onnx does not exist" in caplog.text


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """Commands open fake engines; returns what they were asked to open."""
    asked: list[tuple[str, dict]] = []

    def load(path: str, **options) -> FakeEngine:
        asked.append((path, options))
        return FakeEngine(FINDINGS)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "load_engine", load)
    monkeypatch.setattr(cli.cv2, "setNumThreads", lambda count: None)
    monkeypatch.setattr(
        cli, "cold_start", lambda *_: {"import_ms": 1.0, "load_ms": 2.0, "first_ms": 3.0, "peak_mib": None}
    )
    return asked


def test_command(fakes, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--images", "images", "--seconds", "0.01", "--threads", "2"]
    outputs = ["--json", "out/bench.json", "--report", "out/bench.html"]
    assert cli.main(["--engine", "x/a.onnx", "--engine", "b<&>.onnx", *options, *outputs]) == 0
    assert fakes == [("x/a.onnx", {"threads": 2}), ("b<&>.onnx", {"threads": 2})]
    out = capsys.readouterr().out
    for word in ("Engine alone", "End to end", "a.onnx", "p99", "peak MiB", "threads: 2", "3 images"):
        assert word in out

    report = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert report["schema"] == SCHEMA
    assert report["settings"]["threads"] == 2
    first, second = report["engines"]
    assert (first["name"], second["name"]) == ("a.onnx", "b<&>.onnx")
    assert set(first["stages"]) == set(STAGES)
    assert first["detect"]["median"] <= first["detect"]["p90"] <= first["detect"]["p99"]
    assert first["cold"]["peak_mib"] is None

    html = (tmp_path / "out" / "bench.html").read_text()
    assert "b&lt;&amp;&gt;.onnx" in html
    assert html.count("<svg") == 2
    assert not re.search(r"(?:src|href)\s*=|@import|url\(", html)


def test_command_without_images(fakes, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--engine", "a.onnx", "--seconds", "0.01", "--no-cold"]) == 0
    assert "1 images" in capsys.readouterr().out
    assert fakes == [("a.onnx", {})]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "--engine"),
        (["--engine", "a", "--seconds", "0"], 2, "greater than 0"),
        (["--engine", "a", "--batch", "3"], 2, "batches of 1 to 1"),
        (["--engine", "a", "--images", "nowhere"], 2, "nowhere does not exist"),
    ],
)
def test_wrong_use(fakes, capsys: pytest.CaptureFixture[str], options, code, message) -> None:
    assert cli.main([*options, "--no-cold"] if options else []) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.onnx", "b.pth"], ["a.onnx", "b.pth"]),
        (["x/a.onnx", "y/a.onnx"], ["x/a.onnx", "y/a.onnx"]),
        (["a.onnx", "a.onnx"], ["a.onnx #1", "a.onnx #2"]),
    ],
)
def test_names_are_different(paths: list[str], names: list[str]) -> None:
    assert cli._names(paths) == names


def test_bench_needs_no_torch() -> None:
    code = "import sys, yolact_bench.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
