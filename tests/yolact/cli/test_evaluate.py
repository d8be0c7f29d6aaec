"""The `yolact-eval` command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_engine import FakeEngine, Found, annotation, coco_file, write_image
from pycocotools.coco import COCO

from yolact.cli import evaluate as command

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
    monkeypatch.setattr(command, "load_engine", lambda path, **options: FakeEngine({1: [Found(BOX)]}))
    return tmp_path


DATA = ["--images", "val", "--annotations", "annotations/instances_val.json"]


def test_prints_the_original_columns(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--engine", "e.onnx", *DATA, "--per-class"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert " ".join(lines[0]) == "AP all .50 .55 .60 .65 .70 .75 .80 .85 .90 .95"
    assert ["box", *["50.50"] * 11] in lines
    assert ["mask", *["50.50"] * 11] in lines
    assert ["cat", "50.50", "50.50"] in lines
    assert ["dog", "-", "-"] in lines
    assert lines[-1][:4] == ["2", "images,", "1", "detections,"]


def test_writes_the_metrics(dataset: Path) -> None:
    assert command.main(["--engine", "e.onnx", *DATA, "--json", "out/metrics.json"]) == 0
    metrics = json.loads((dataset / "out" / "metrics.json").read_text())
    assert metrics["engine"] == "e.onnx"
    assert metrics["images"] == 2
    assert metrics["mask"]["ap50"] == pytest.approx(51 / 101)
    assert metrics["mask"]["ap_large"] is None


def test_writes_result_files_that_coco_opens(dataset: Path) -> None:
    assert command.main(["--trained_model=e.pth", *DATA, "--output_coco_json"]) == 0
    truth = COCO(str(dataset / "annotations" / "instances_val.json"))
    for kind in ("bbox", "mask"):
        assert len(truth.loadRes(str(dataset / "results" / f"{kind}_detections.json")).anns) == 1


def test_dataset_folder_and_first_images(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--engine", "e", "--dataset", str(dataset), "--max_images=1"]) == 0
    assert "1 images, 1 detections" in capsys.readouterr().out


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
        (["--engine", "e", *DATA, "--max-images", "0"], 2, "max_images is 0"),
        (["--engine", "e", "--images", "val", "--annotations", "no.json"], 1, "no.json does not exist"),
    ],
)
def test_wrong_use(dataset: Path, capsys: pytest.CaptureFixture[str], options, code, message) -> None:
    assert command.main(options) == code
    assert message in capsys.readouterr().err
