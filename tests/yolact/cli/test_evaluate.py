"""The `yolact-eval` command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine, Found, annotation, coco_file, write_image
from pycocotools.coco import COCO

from yolact.cli import evaluate as command
from yolact.evaluation.confusion import SCORE_THRESHOLD
from yolact.evaluation.report import report_files

BOX = (4, 6, 24, 30)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images with a cat each; the engine finds the first. The current folder is the dataset's."""
    monkeypatch.chdir(tmp_path)
    content = coco_file([1, 2], [annotation(1, 1, BOX), annotation(2, 2, BOX)])
    for image in (1, 2):
        write_image(tmp_path / "val" / f"{image}.png", image)
        write_image(tmp_path / "train" / f"{image}.png", image)
    for split in ("train", "val"):
        path = tmp_path / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    monkeypatch.setattr(command, "open_engine", lambda args: FakeEngine({1: [Found(BOX)]}))
    return tmp_path


DATA = ["--images", "val", "--annotations", "annotations/instances_val.json"]


def test_prints_the_original_columns(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--engine", "e.onnx", *DATA, "--per-class"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    summary = "mask AP 50.50, AP50 50.50; box AP 50.50, AP50 50.50"
    assert [" ".join(line) for line in lines].index(summary) == len(lines) - 1
    assert " ".join(lines[0]) == "AP all .50 .55 .60 .65 .70 .75 .80 .85 .90 .95"
    assert ["box", *["50.50"] * 11] in lines
    assert ["mask", *["50.50"] * 11] in lines
    assert ["cat", "50.50", "50.50"] in lines
    assert ["dog", "-", "-"] in lines
    assert lines[-2][:4] == ["2", "images,", "1", "detection,"]


def test_writes_the_metrics(dataset: Path) -> None:
    assert command.main(["--engine", "e.onnx", *DATA, "--json", "out/metrics.json"]) == 0
    metrics = json.loads((dataset / "out" / "metrics.json").read_text())
    assert metrics["engine"] == "e.onnx"
    assert metrics["images"] == 2
    assert metrics["mask"]["ap50"] == pytest.approx(51 / 101)
    assert metrics["mask"]["ap_large"] is None


def test_writes_a_report(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--engine", "e.onnx", *DATA, "--json", "plain.json"]) == 0
    options = ["--report", "out/report", "--confusion-score", "0.95", "--json", "detailed.json"]
    assert command.main(["--engine", "e.onnx", *DATA, *options]) == 0
    assert "report.html" in capsys.readouterr().err
    assert "e.onnx" in (dataset / "out" / "report" / "report.html").read_text()
    assert set(report_files("out/report")) == set(Path("out/report").iterdir())
    plain, detailed = (json.loads((dataset / f"{name}.json").read_text()) for name in ("plain", "detailed"))
    assert detailed.keys() - plain.keys() == {"details"}
    confusion = detailed["details"]["confusion"]
    assert (confusion["score_threshold"], confusion["counts"][0]) == (0.95, [0, 0, 2])
    assert len(detailed["details"]["mask"]["by_class"]["cat"]) == len(detailed["details"]["mask"]["recall"])


@pytest.mark.parametrize(
    ("library", "option", "message"),
    [
        ("matplotlib", ["--report", "out"], 'pip install "yolact[bench]"'),
        ("jinja2", ["--report", "out"], 'pip install "yolact[bench]"'),
        ("faster_coco_eval", ["--faster"], "pip install faster-coco-eval"),
    ],
)
def test_missing_packages_are_reported_before_the_work(
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    library,
    option,
    message,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(command, "open_engine", lambda args: pytest.fail("work was begun"))
    assert command.main(["--engine", "e", *DATA, *option]) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith(message)
    assert "\n" not in said


def test_writes_result_files_that_coco_opens(dataset: Path) -> None:
    assert command.main(["--trained_model=e.pth", *DATA, "--output_coco_json"]) == 0
    truth = COCO(str(dataset / "annotations" / "instances_val.json"))
    for kind in ("bbox", "mask"):
        assert len(truth.loadRes(str(dataset / "results" / f"{kind}_detections.json")).anns) == 1


def test_dataset_folder_and_first_images(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--engine", "e", "--dataset", str(dataset), "--max_images=1"]) == 0
    assert "1 image, 1 detection," in capsys.readouterr().out


def test_failed_images_make_the_exit_code_1(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "val" / "2.png").write_bytes(b"")
    assert command.main(["--engine", "e", *DATA, "--json", "metrics.json"]) == 1
    captured = capsys.readouterr()
    assert "1 of 2 images failed" in captured.err
    assert "50.50" in captured.out
    assert set(json.loads((dataset / "metrics.json").read_text())["failures"]) == {"2.png"}


def test_a_test_set_is_only_run(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "test.json").write_text(json.dumps(coco_file([1, 2], [])))
    options = ["--images", "val", "--annotations", "test.json", "--output-coco-json"]
    assert command.main(["--engine", "e", *options]) == 0
    assert "has no annotations" in capsys.readouterr().err
    assert len(json.loads((dataset / "results" / "mask_detections.json").read_text())) == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "--engine"),
        (["--engine", "e"], 2, "give both --images and --annotations, or --dataset"),
        (["--engine", "e", "--images", "val"], 2, "give both --images and --annotations"),
        (["--engine", "e", "--images", "in:out"], 2, "--images in:out: use yolact-infer"),
        (["--trained_model=e", "--image=a.jpg:b.png"], 2, "--image: use yolact-infer"),
        (["--trained_model=e", "--video", "a.mp4"], 2, "--video: use yolact-infer"),
        (["--trained_model=e", "--score_threshold=0.15", "--top_k=15"], 2, "use yolact-infer"),
        (["--engine", "e", *DATA, "--max-images", "0"], 2, "max_images is 0"),
        (["--engine", "e", *DATA, "--confusion-score", "30"], 2, "is 30.0; it must be 0 to 1"),
        (["--engine", "e", "--images", "val", "--annotations", "no.json"], 1, "no.json does not exist"),
    ],
)
def test_wrong_use(dataset: Path, capsys: pytest.CaptureFixture[str], options, code, message) -> None:
    assert command.main(options) == code
    assert message in capsys.readouterr().err


def test_some_classes(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--engine", "e.onnx", *DATA, "--per-class", "--output-coco-json", "--report", "out"]
    assert command.main([*options, "--json", "cat.json", "--classes", "1"]) == 0
    assert "dog" not in capsys.readouterr().out
    metrics = json.loads((dataset / "cat.json").read_text())
    assert metrics["classes"] == "cat" and list(metrics["mask"]["by_class"]) == ["cat"]
    assert metrics["details"]["confusion"]["classes"] == ["cat"]
    assert command.main([*options, "--json", "dog.json", "--classes", "dog"]) == 0
    assert json.loads((dataset / "dog.json").read_text())["detections"] == 0
    assert json.loads((dataset / "results" / "bbox_detections.json").read_text()) == []
    assert command.main([*options, "--classes", "cats"]) == 2
    assert "--classes: there is no class 'cats'; near ones: cat" in capsys.readouterr().err


def test_default_score_of_the_confusion_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    help_text = " ".join(capsys.readouterr().out.split())
    assert f"detections in the confusion matrix (default: {SCORE_THRESHOLD})" in help_text
