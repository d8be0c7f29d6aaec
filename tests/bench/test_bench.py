"""`yolact-bench` with engines that find what the test says. No test looks at how long anything takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import fake_nvml
import jsonschema
import pytest
from fake_engine import FakeEngine, Found, annotation, coco_file

from yolact_bench import cli
from yolact_bench.cli import write_synthetic_image
from yolact_bench.measure import cold, machine
from yolact_bench.roofline import graph
from yolact_bench.roofline.graph import roofline_share
from yolact_runtime.sources.images import read_image

BOX = (4, 6, 24, 30)
FINDINGS = {1: [Found(BOX), Found(BOX, 1, 0.05)], 2: [Found(BOX)]}


def test_machine() -> None:
    described = machine.describe_machine()
    assert described["cpu"]
    assert described["cores"] >= 1
    assert re.match(r"\d+\.", described["versions"]["numpy"])
    assert json.loads(json.dumps(described)) == described
    before = cold.peak_memory()
    if before is not None:
        block = bytearray(64 * 1024 * 1024)
        block[::4096] = b"x" * len(block[::4096])
        assert cold.peak_memory() >= max(before, 64)


def test_the_synthetic_image_is_the_same_every_time(tmp_path: Path) -> None:
    for name in "ab":
        write_synthetic_image(tmp_path / f"{name}.jpg")
    assert read_image(tmp_path / "a.jpg").shape == (480, 640, 3)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()


def test_cold_start_prints_its_figures(
    images: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(
        "yolact_runtime.load_engine",
        lambda path, **options: asked.append((path, options)) or FakeEngine({}, max_batch=4),
    )
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert cold.main(["e.onnx", str(images[0]), '{"threads": 2}', "8"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"import_ms", "load_ms", "first_ms", "peak_mib", "device_mib"}
    assert printed["device_mib"] is None
    assert asked == [("e.onnx", {"threads": 2})]
    fake_nvml.install(monkeypatch)
    assert cold.main(["e.onnx", str(images[0]), "{}", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["device_mib"] == 0


def test_cold_start_that_fails_is_a_warning(images: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    assert cold.cold_start("missing.onnx", images[0], {}) is None
    assert "missing.onnx does not exist" in caplog.text


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """Commands open fake engines; returns what they were asked to open."""
    asked: list[tuple[str, dict]] = []

    def load(path: str, **options) -> FakeEngine:
        asked.append((path, options))
        return FakeEngine(FINDINGS, max_batch=2)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("yolact_bench.measure.engines.load_engine", load)
    figures = {"import_ms": 1.0, "load_ms": 2.0, "first_ms": 3.0, "peak_mib": None, "device_mib": None}
    monkeypatch.setattr(cold, "cold_start", lambda *_: figures)
    return asked


def schema() -> dict:
    return json.loads(resources.files("yolact_bench.report").joinpath("schema.json").read_text())


def test_command(fakes, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--images", "images", "--seconds", "0.01", "--threads", "2", "--batch", "1", "2"]
    outputs = ["--json", "out/bench.json", "--report", "out/bench.html"]
    engines = ["--engine", "x/a.onnx", "--engine", "b<&>.onnx:threads=1,providers=cpu"]
    assert cli.main([*engines, *options, *outputs]) == 0
    assert fakes == [("x/a.onnx", {"threads": 2}), ("b<&>.onnx", {"threads": 1, "providers": ("cpu",)})]
    out = capsys.readouterr().out
    for word in ("Network only", "End to end", "a.onnx", "p99", "import", "threads: 2", "3 images"):
        assert word in out
    # The protocol is with both tables of times.
    assert out.count("Warm-up until times settle") == 2

    report = json.loads((tmp_path / "out" / "bench.json").read_text())
    jsonschema.validate(report, schema())
    assert report["settings"]["threads"] == 2
    first, second = report["engines"]
    assert (first["name"], second["name"]) == ("a.onnx", "b<&>.onnx threads=1 cpu")
    assert [one["batch"] for one in first["batches"]] == [1, 2]
    alone = first["batches"][0]["alone"]
    assert alone["median"] <= alone["p90"] <= alone["p99"]
    assert first["cold"]["peak_mib"] is None
    # Samples are on one line, so that the file can be read and compared.
    text = (tmp_path / "out" / "bench.json").read_text()
    assert re.search(r'"samples_us": \[\d+(, \d+)+\]', text)
    assert "b&lt;&amp;&gt;.onnx" in (tmp_path / "out" / "bench.html").read_text()


def test_command_without_images(fakes, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--engine", "a.onnx", "--seconds", "0.01", "--no-cold"]) == 0
    assert "1 image" in capsys.readouterr().out
    assert fakes == [("a.onnx", {})]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "--engine"),
        (["--engine", "a", "--seconds", "0"], 2, "--seconds is 0.0; it must be 1e-06 or more"),
        (["--engine", "a", "--batch", "3"], 2, "batches of 1 to 2"),
        (["--engine", "a", "--batch", "0"], 2, "--batch is 0"),
        (["--engine", "a", "--threads", "0"], 2, "--threads is 0"),
        (["--engine", "a:threads=x"], 2, "threads is x"),
        (["--engine", "a", "--images", "nowhere"], 2, "nowhere does not exist"),
        (["--engine", "a", "--annotations", "a.json"], 2, "--annotations needs --images"),
    ],
)
def test_wrong_use(fakes, capsys: pytest.CaptureFixture[str], options, code, message) -> None:
    assert cli.main([*options, "--no-cold"] if options else []) == code
    assert message in capsys.readouterr().err


def test_ap_of_every_engine(fakes, images, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = coco_file((1, 2, 3), [annotation(1, 1, BOX), annotation(2, 2, BOX), annotation(3, 3, BOX)])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    options = ["--images", "images", "--annotations", "truth.json", "--seconds", "0.01", "--no-cold"]
    assert cli.main(["--engine", "a.onnx", *options, "--json", "bench.json"]) == 0
    (engine,) = json.loads((tmp_path / "bench.json").read_text())["engines"]
    # Two of three objects are found, with nothing wrong before them: precision 1 up to recall 2/3.
    assert engine["accuracy"]["mask_ap"] == pytest.approx(67 / 101)
    assert engine["accuracy"]["images"] == 3
    assert "mask AP" in capsys.readouterr().out
    assert cli.main(["--engine", "a.onnx", *options, "--max-images", "1", "--json", "bench.json"]) == 0
    (engine,) = json.loads((tmp_path / "bench.json").read_text())["engines"]
    assert (engine["accuracy"]["mask_ap"], engine["accuracy"]["images"]) == (pytest.approx(1), 1)


@pytest.mark.usefixtures("short_passes")
def test_some_classes(fakes, images, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    asked = []
    figures = {"import_ms": 1.0, "load_ms": 2.0, "first_ms": 3.0, "peak_mib": None, "device_mib": None}
    monkeypatch.setattr(cold, "cold_start", lambda *given: asked.append(given[-1]) or figures)
    truth = coco_file((1, 2), [annotation(1, 1, BOX), annotation(2, 2, BOX, 2)])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    given = [
        "--engine",
        "a.onnx",
        "--images",
        "images",
        "--seconds",
        "0.01",
        "--pipeline",
        "--classes",
        "cat",
    ]
    outputs = ["--annotations", "truth.json", "--json", "bench.json", "--report", "bench.html"]
    assert cli.main([*given, *outputs]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    jsonschema.validate(report, schema())
    assert report["settings"]["classes"] == ["cat"] and asked == [["cat"]]
    # Of the two objects one is a cat, which is found; another image has a wrong one with the same score.
    assert report["engines"][0]["accuracy"]["mask_ap"] == pytest.approx(1)
    assert "masks of all detections of the classes cat above" in " ".join(capsys.readouterr().out.split())
    assert "of the classes cat above" in (tmp_path / "bench.html").read_text()
    assert cli.main([*given[:-1], "cats"]) == 2
    assert "--classes: there is no class 'cats'; near ones: cat" in capsys.readouterr().err


def test_peers_get_their_command_line(fakes, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["peers", "--engine", "a", "--images", "images"]) == 2
    assert "no peer was asked for" in capsys.readouterr().err


def test_no_roofline_without_a_graph(caplog: pytest.LogCaptureFixture) -> None:
    assert roofline_share("w.pth", 1, 3.0, False, None, None) is None
    assert "only ONNX files" in caplog.text


@pytest.mark.usefixtures("short_passes")
def test_pipeline_and_roofline_are_given_what_the_engine_is(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop gets an engine with one stream, the pipeline one for throughput; the ceiling is the delivered
    precision's."""
    asked: list[dict] = []

    def load(path: str, **options) -> FakeEngine:
        asked.append(options)
        engine = FakeEngine(FINDINGS)
        asked_streams = options.get("streams", 1)
        engine.streams = 2 if asked_streams == "auto" else asked_streams
        engine.threads = 3
        if path == "gpu.engine":  # has streams by itself, and takes no threads from a call
            engine.streams, engine.threads = 2, None
        return engine

    shares = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("yolact_bench.measure.engines.load_engine", load)
    monkeypatch.setattr(FakeEngine, "precision", "bf16")
    monkeypatch.setattr(graph, "roofline_share", lambda *arguments: shares.append(arguments[3:]))
    options = ["--images", "images", "--seconds", "0.01", "--no-cold", "--pipeline", "--roofline"]
    engines = ["--engine", "a.onnx:threads=3", "--engine", "b.onnx:streams=4", "--engine", "gpu.engine"]
    assert cli.main([*engines, *options, "--json", "bench.json"]) == 0
    assert asked[:3] == [{"threads": 3}, {"streams": 4}, {}]
    assert asked[3:] == [{"threads": 3, "streams": "auto"}, {"streams": 1}]
    report = json.loads((tmp_path / "bench.json").read_text())
    jsonschema.validate(report, schema())
    assert [one["pipeline"]["streams"] for one in report["engines"]] == [2, 4, 2]
    assert shares == [(False, 3, "bf16"), (False, None, "bf16"), (False, None, "bf16")]


def test_bench_needs_no_torch() -> None:
    code = "import sys, yolact_bench.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_torch_engines_share_their_threads(fakes, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(FakeEngine, "name", "PyTorch (cpu)")
    assert cli.main(["--engine", "a:threads=1", "--engine", "b:threads=2", "--no-cold"]) == 2
    assert "share their CPU threads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("jinja2", ["--report", "bench.html"]),
        ("matplotlib", ["--report", "bench.html"]),
        ("scipy", []),
        ("psutil", []),
        ("onnx", ["--roofline"]),
        ("sympy", ["--roofline"]),
    ],
)
def test_what_is_missing_is_said_before_the_work(
    fakes, images, monkeypatch: pytest.MonkeyPatch, capsys, package: str, options: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["--engine", "a.onnx", *options]) == 1
    extra = "train" if "--roofline" in options else "bench"
    assert f'run: pip install "yolact[{extra}]"' in capsys.readouterr().err
    assert fakes == []
