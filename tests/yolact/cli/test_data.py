from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolact.cli.data import main
from yolact.config import DatasetConfig
from yolact.dataset_tools.convert import FORMATS
from yolact.dataset_tools.synthetic import make_shapes_dataset


@pytest.fixture
def shapes(tmp_path: Path) -> DatasetConfig:
    return make_shapes_dataset(tmp_path / "shapes", 12, 2)


def test_shapes_then_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--image-size", "100x140", "--diameter", "20", "40", "--max-instances", "6"]
    assert main(["shapes", str(tmp_path / "s"), "--train", "4", "--val", "2", "--seed", "3", *size]) == 0
    path = tmp_path / "s" / "annotations" / "instances_train.json"
    found = main(["check", str(path), "--images", str(tmp_path / "s" / "train")])
    assert found == 0
    out = capsys.readouterr().out
    assert "triangle" in out
    assert "4 images" in out
    assert "0 errors" in out


def test_shapes_of_images_that_are_wide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("60x400", "121x215"):
        assert main(["shapes", str(tmp_path), "--train", "5", "--val", "1", "--image-size", size]) == 0
        content = json.loads((tmp_path / "annotations" / "instances_train.json").read_text())
        height, width = map(int, size.split("x"))
        for image in content["images"]:
            assert 0.79 * height < image["height"] < 1.21 * height
            assert 0.79 * width < image["width"] < 1.21 * width
    capsys.readouterr()
    assert main(["shapes", str(tmp_path), "--image-size", "144"]) == 2
    assert "--image-size '144'; height x width is needed, such as 144x256" in capsys.readouterr().err


def test_check_fails_on_errors_and_not_on_warnings(
    shapes: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shapes.train_annotations)
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = 0
    path.write_text(json.dumps(content))
    assert main(["check", str(path)]) == 0
    assert "degenerate box: 1" in capsys.readouterr().out
    for annotation in content["annotations"][:5]:
        annotation["category_id"] = 77
    path.write_text(json.dumps(content))
    assert main(["check", str(path), "--json", str(tmp_path / "found.json")]) == 1
    out = capsys.readouterr().out
    assert "unknown category: 5" in out
    assert "annotation 1: category_id 77" in out
    assert "and 2 more" in out
    findings = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert sum(finding["kind"] == "unknown category" for finding in findings) == 5


def test_names_with_brackets_are_printed_as_they_are(write_one, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write_one([{"id": 1, "name": "[red] nut"}]))]) == 0
    assert "[red] nut" in capsys.readouterr().out


@pytest.fixture
def write_one(tmp_path: Path):
    def write(categories: list) -> Path:
        path = tmp_path / "one.json"
        image = {"id": 1, "file_name": "1.png", "height": 9, "width": 9}
        path.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))
        return path

    return write


def test_show_draws_what_the_network_sees(shapes: DatasetConfig, tmp_path: Path) -> None:
    options = ["--images", shapes.train_images, "--count", "5", "--config", "yolact_tiny"]
    assert main(["show", shapes.train_annotations, *options, "--output", str(tmp_path / "out")]) == 0
    pictures = sorted((tmp_path / "out").iterdir())
    assert len(pictures) == 5
    for path in pictures:
        picture = cv2.imread(str(path))
        assert picture.shape == (896, 896, 3)
        number = path.stem.split("_")[0]
        plain = cv2.resize(cv2.imread(f"{shapes.train_images}/{number}.png"), (896, 896))
        # Most of the picture is the image itself; boxes, masks and labels change the rest.
        assert np.median(np.abs(picture.astype(int) - plain)) < 6
    options[3] = "99"
    assert main(["show", shapes.train_annotations, *options, "--output", str(tmp_path / "all")]) == 0
    assert len(list((tmp_path / "all").iterdir())) == 12


def test_show_draws_the_classes_that_training_sees(
    shapes: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--images", shapes.train_images, "--count", "2", "--config", "yolact_tiny"]
    options += ["--output", str(tmp_path / "out"), "--set", 'dataset.classes=["circle"]']
    assert main(["show", shapes.train_annotations, *options]) == 0
    assert "4 of 12 images have objects of other classes only; they are left out" in capsys.readouterr().err


def test_show_draws_inputs_that_are_not_square(shapes: DatasetConfig, tmp_path: Path) -> None:
    options = ["--images", shapes.train_images, "--count", "1", "--set", "model.input_size=[96,160]"]
    assert main(["show", shapes.train_annotations, *options, "--output", str(tmp_path / "out")]) == 0
    (picture,) = (tmp_path / "out").iterdir()
    assert cv2.imread(str(picture)).shape == (480, 800, 3)


def test_show_draws_augmented_samples(shapes: DatasetConfig, tmp_path: Path, capsys) -> None:
    def pictures(*extra: str) -> dict[str, bytes]:
        folder = tmp_path / "-".join(("out", *extra))
        options = ["--images", shapes.train_images, "--count", "3", "--config", "yolact_tiny"]
        assert main(["show", shapes.train_annotations, *options, "--output", str(folder), *extra]) == 0
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    plain, augmented = pictures(), pictures("--augment")
    assert plain.keys() == augmented.keys()
    assert all(plain[name] != augmented[name] for name in plain)
    assert pictures("--augment", "--epoch", "0") == augmented
    assert pictures("--augment", "--epoch", "1") != augmented
    wrong = ["--images", shapes.train_images, "--output", str(tmp_path), "--epoch", "-1"]
    assert main(["show", shapes.train_annotations, *wrong]) == 2
    assert "--epoch -1" in capsys.readouterr().err


def test_show_goes_on_after_an_unreadable_image(shapes: DatasetConfig, tmp_path: Path, capsys) -> None:
    (Path(shapes.train_images) / "000003.png").write_bytes(b"")
    options = ["--images", shapes.train_images, "--output", str(tmp_path / "out"), "--config", "yolact_tiny"]
    assert main(["show", shapes.train_annotations, *options]) == 1
    assert len(list((tmp_path / "out").iterdir())) == 11
    assert "000003.png" in capsys.readouterr().err


def test_show_takes_long_names_and_refuses_no_pictures(tmp_path: Path, write_coco, make_square) -> None:
    folder, path = write_coco([(64, 64)], [make_square(5, 5, 30)])
    name = "ü" * 125 + ".png"
    (folder / "1.png").rename(folder / name)
    content = json.loads(path.read_text())
    content["images"][0] |= {"id": 123456789, "file_name": name}
    content["annotations"][0]["image_id"] = 123456789
    path.write_text(json.dumps(content))
    command = [
        "show",
        str(path),
        "--images",
        str(folder),
        "--output",
        str(tmp_path / "o"),
        "--config",
        "yolact_tiny",
    ]
    assert main(command) == 0
    assert len(list((tmp_path / "o").iterdir())) == 1
    assert main([*command, "--count", "0"]) == 2


def test_convert_writes_a_file_that_check_accepts(tmp_path: Path, capsys) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((20, 30, 3), np.uint8))
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 5:20] = 255
    cv2.imwrite(str(tmp_path / "masks" / "a" / "rod_1.png"), mask)
    out, images = str(tmp_path / "out" / "coco.json"), str(tmp_path / "images")
    assert main(["convert", "masks", str(tmp_path / "masks"), out, "--images", images]) == 0
    assert main(["check", out, "--images", images]) == 0
    assert "rod" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "COMMAND"),
        (["convert", "xml", ".", "o.json"], 2, "labelme"),
        (["check", "gone.json"], 1, "gone.json does not exist"),
        (["show", "gone.json", "--images", ".", "--output", "o"], 1, "gone.json does not exist"),
        (["shapes", "s", "--train", "0"], 2, "1 or more"),
    ],
)
def test_errors_are_one_line_with_the_right_code(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_debug_before_or_after_the_command_shows_the_traceback(tmp_path: Path) -> None:
    for arguments in (["--debug", "check", "gone"], ["check", "gone", "--debug"]):
        with pytest.raises(Exception, match="gone"):
            main(arguments)


def test_every_format_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--help"]) == 0
    assert "{" + ",".join(sorted(FORMATS)) + "}" in capsys.readouterr().out


def test_only_show_needs_torch(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from yolact.cli.data import main
root = Path(sys.argv[1])
annotations = root / "annotations" / "instances_train.json"
codes = [
    main(["shapes", str(root), "--train", "2", "--val", "1"]),
    main(["check", str(annotations), "--images", str(root / "train")]),
    main(["convert", "yolo", str(root), str(root / "none.json")]),
]
print(codes, sorted({"torch", "torchvision", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[0, 0, 1] []"
