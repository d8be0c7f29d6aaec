"""YOLO's text as instances: against hand-made masks, and Ultralytics' own reader if it is installed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import HEIGHT, WIDTH, opened, write_image

from yolact.data.layout import resolve_dataset
from yolact.dataset_tools.convert import convert, convert_yolo_dataset
from yolact_runtime.errors import YolactError

GOOD = "0 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75"
TRIANGLE = "0 0 0 0.5 0 0.5 0.5"


def write(root: Path, text: str, names: str | None = "names: [cat, cow, dog]\n") -> Path:
    """Two images, text for one of them, and class names; returns the folder of the text."""
    write_image(root / "images" / "train", "a.png", "b.png")
    labels = root / "labels" / "train"
    labels.mkdir(parents=True, exist_ok=True)
    (labels / "a.txt").write_text(text)
    if names is not None:
        (root / "data.yaml").write_text(names)
    return labels


def test_polygons_with_class_zero(tmp_path: Path) -> None:
    labels = write(tmp_path, f"{GOOD}\n\n2.0 0 0 0.1 0 0.1 0.1\n")
    conversion = convert("yolo", labels)
    assert conversion.faults == []
    assert [category["id"] for category in conversion.content["categories"]] == [0, 1, 2]
    found = opened(conversion, tmp_path)
    assert found["b.png"] == []
    (first, mask), (second, _) = found["a.png"]
    assert (first, second) == ("cat", "dog")
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[10:30, 15:30] = True
    assert (mask == expected).all()


class TestNames:
    def names(self, root: Path, text: str, name: str = "data.yaml") -> dict[int, str]:
        labels = write(root, "0 0 0 0.5 0 0.5 0.5", None)
        (root / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        content = convert("yolo", labels).content
        return {category["id"]: category["name"] for category in content["categories"]}

    @pytest.mark.parametrize(
        "text",
        [
            "names: {0: yes, 1: 007}",
            "names:\n  0: yes\n  1: 007\n",
            "path: .\nnc: 2\nnames:\n    1: 007\n    0: yes\n",
            "names: [yes, 007]",
            "names:\n- yes\n- 007\n",
            "names:\r\n  - 'yes'  # a comment\r\n  - \"007\"\r\n",
            'names: [\n  "yes",\n  007,\n]',
            "names:\n  '0': yes\n  '1': 007\n",
        ],
    )
    def test_of_yaml_files(self, tmp_path: Path, text: str) -> None:
        assert self.names(tmp_path, text) == {0: "yes", 1: "007"}

    def test_keep_their_text(self, tmp_path: Path) -> None:
        texts = ["no", "on", "null", "~", "1e3", "2024-01-01", "0x1F", "1:30", "True", "3.10"]
        assert list(self.names(tmp_path, f"names: [{', '.join(texts)}]").values()) == texts

    @pytest.mark.parametrize("name", ["classes.txt", "obj.names", "labels/classes.txt", "_darknet.labels"])
    def test_of_text_files(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "labels").mkdir()
        assert self.names(tmp_path, "red nut \r\nbolt\r\n\r\n", name) == {0: "red nut", 1: "bolt"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("names: cat", "holds no class names: one a line"),
            ("nc: 3", "holds no class names"),
            ("names: []", "holds no class names"),
            ("names: [cat, [a, b]]", "class '1' .*not text"),
            ("names: [cat, '']", "class '1' .*empty"),
            ("names: {cat: 0}", "class 'cat' .*mapping from numbers"),
            ("names: {0: cat, 00: dog}", "class number 0"),
            ("names: {-1: cat}", "class number -1"),
            ("names: [cat, cat]", "same class name twice: 'cat'"),
            ("names: [cat, 'cat ']", "same class name twice"),
            ("nc: 3\nnames: [cat, dog]", "nc is 3, but there are 2 names"),
        ],
    )
    def test_damaged(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(YolactError, match=rf"data\.yaml.*{message}"):
            self.names(tmp_path, text)

    def test_no_yaml(self, tmp_path: Path) -> None:
        with pytest.raises(YolactError, match=r"cannot read class names .*data\.yaml"):
            self.names(tmp_path, "names: [")

    def test_an_empty_line_would_shift_the_numbers(self, tmp_path: Path) -> None:
        with pytest.raises(YolactError, match=r"class '1' .*empty"):
            self.names(tmp_path, "cat\n\ndog\n", "classes.txt")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(YolactError, match="--names"):
            convert("yolo", write(tmp_path, TRIANGLE, None))


class TestLines:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("0 20 10 100 10 100 60", "coordinate 100; .*these are pixels"),
            ("0 0.1 0.1 0.5 0.1 0.5 1.02", "coordinate 1.02; expected 0 to 1"),
            ("0 -0.02 0.1 0.5 0.1 0.5 0.5", "coordinate -0.02"),
            ("0 0 0 1 1 1 nan", "not finite"),
            ("0 0 0 1 1 1 inf", "not finite"),
            ("0 0.5 0.5 0.1", "3 coordinates; a polygon has three points"),
            ("0", "0 coordinates"),
            ("0 0.5 0.5 0.1 0.1 0.9", "5 coordinates; a confidence"),
            ("0 0 0 1 0 1 1 0.9", "7 coordinates; a confidence"),
            ("0 0.5 0.5 0.1 0", "a box of 0.1 x 0"),
            ("3 0 0 1 1 1 0", "class 3; there are names for 0, 1, 2"),
            ("-1 0 0 1 1 1 0", "class -1"),
            ("0.5 0 0 1 1 1 0", "class 0.5"),
            ("nan 0 0 1 1 1 0", "class nan"),
            ("cat 0 0 1 1 1 0", "'cat'"),
            ("0 0 0 1 1 1 x", "'x'"),
            ("0 0.1 0.1 0.5 0.5 0.9 0.9", "covers no pixel"),
        ],
    )
    def test_damaged_ones_are_named_and_the_rest_converted(
        self, tmp_path: Path, line: str, message: str
    ) -> None:
        labels = write(tmp_path, f"{GOOD}\n{line}\n{TRIANGLE}\n")
        conversion = convert("yolo", labels)
        assert len(conversion.content["annotations"]) == 2
        (fault,) = conversion.faults
        assert fault.startswith(f"{labels / 'a.txt'}, line 2: ")
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(fault)

    def test_nothing_else(self, tmp_path: Path) -> None:
        with pytest.raises(YolactError, match=r"nothing is converted, 2 faults: .*line 1: .*pixels"):
            convert("yolo", write(tmp_path, "0 20 10 100 10 100 60\n0 1 2 30 4 50 6"))

    def test_rounding_is_clipped(self, tmp_path: Path) -> None:
        conversion = convert("yolo", write(tmp_path, "0 -0.001 0 1.0002 0 1 1 0 1.00001"))
        assert conversion.content["annotations"][0]["bbox"] == [0, 0, WIDTH, HEIGHT]

    def test_boxes_become_objects_without_a_mask(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        conversion = convert("yolo", write(tmp_path, f"{GOOD}\n1 0.5 0.5 0.5 0.25\n"))
        box = conversion.content["annotations"][1]
        assert box["bbox"] == [15, 15, 30, 10]
        assert (box["segmentation"], box["area"], box["iscrowd"]) == ([], 300, 0)
        assert "1 object of 2 have a box and no outline" in caplog.text
        assert len(opened(conversion, tmp_path)["a.png"]) == 1

    def test_boxes_only(self, tmp_path: Path) -> None:
        with pytest.raises(YolactError, match="holds boxes only"):
            convert("yolo", write(tmp_path, "1 0.5 0.5 0.5 0.25\n"))

    def test_turned_boxes_are_suspected(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        lines = [f"0 0.1 {y} 0.9 {y} 0.9 0.9 0.1 0.9" for y in np.linspace(0, 0.5, 30).round(3)]
        convert("yolo", write(tmp_path, "\n".join(lines)))
        assert "all 30 outlines have four corners" in caplog.text

    def test_lines_given_twice_and_outlines_between_pixels(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tiny = "0 0.501 0.5 0.502 0.5 0.502 0.501"
        conversion = convert("yolo", write(tmp_path, f"{GOOD}\n {GOOD}\r\n{tiny}\n"))
        assert len(conversion.content["annotations"]) == 1
        assert conversion.faults == []
        assert "left out 1 line given twice" in caplog.text
        assert "left out 1 outline too small" in caplog.text


class TestFiles:
    def test_of_missing_images_are_named(self, tmp_path: Path) -> None:
        labels = write(tmp_path, GOOD)
        for name in ("gone.txt", "classes.txt", "README.roboflow.txt"):
            (labels / name).write_text(GOOD)
        (labels / "train_1.TXT").write_text(GOOD)
        faults = convert("yolo", labels).faults
        assert [fault.split(" has no image")[0] for fault in faults] == [
            str(labels / "gone.txt"), str(labels / "train_1.TXT")
        ]  # fmt: skip

    def test_unreadable_ones_are_named(self, tmp_path: Path) -> None:
        labels = write(tmp_path, GOOD)
        (labels / "b.txt").write_bytes(b"\xff\xfe0\x00")
        write_image(tmp_path / "images" / "train", "c.png")
        (tmp_path / "images" / "train" / "c.png").write_bytes(b"")
        conversion = convert("yolo", labels)
        assert len(conversion.content["images"]) == 2
        assert "b.txt is not UTF-8" in "".join(conversion.faults)
        assert "c.png is empty" in "".join(conversion.faults)

    def test_two_images_of_one_name(self, tmp_path: Path) -> None:
        labels = write(tmp_path, GOOD)
        write_image(tmp_path / "images" / "train", "b.jpg", "a.JPG", "c.png")
        (labels / "c.txt").write_text(GOOD)
        conversion = convert("yolo", labels)
        assert [image["file_name"] for image in conversion.content["images"]] == ["c.png"]
        assert "a.JPG and a.png have the same name" in conversion.faults[0]

    def test_next_to_their_images(self, tmp_path: Path) -> None:
        write_image(tmp_path, "a.png")
        (tmp_path / "a.txt").write_text(GOOD)
        (tmp_path / "classes.txt").write_text("cat\n")
        assert len(convert("yolo", tmp_path).content["annotations"]) == 1

    def test_only_the_last_folder_called_labels_counts(self, tmp_path: Path) -> None:
        labels = write(tmp_path / "labels" / "x", GOOD)
        conversion = convert("yolo", labels)
        assert conversion.images == tmp_path / "labels" / "x" / "images" / "train"

    def test_in_the_working_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(write(tmp_path, GOOD))
        assert len(convert("yolo", ".").content["annotations"]) == 1

    def test_in_subfolders(self, tmp_path: Path) -> None:
        write(tmp_path, GOOD)
        (tmp_path / "labels" / "val").mkdir()
        write_image(tmp_path / "images" / "val", "a.png")
        (tmp_path / "labels" / "val" / "a.txt").write_text(f"{GOOD}\n{TRIANGLE}\n")
        found = opened(convert("yolo", tmp_path / "labels"), tmp_path)
        assert {name: len(instances) for name, instances in found.items()} == {
            "train/a.png": 1, "train/b.png": 0, "val/a.png": 2
        }  # fmt: skip

    def test_a_folder_above_names_those_to_give(self, tmp_path: Path) -> None:
        labels = write(tmp_path, GOOD)
        with pytest.raises(YolactError, match=f"no text file with the name .*; give one of {labels}"):
            convert("yolo", tmp_path)

    @pytest.mark.parametrize(
        "entry", ["b", "b.png", "./images/train/b.png", "/home/me/train/b.png", "train\\b"]
    )
    def test_of_a_list(self, tmp_path: Path, entry: str) -> None:
        labels = write(tmp_path, GOOD)
        (labels / "b.txt").write_text(GOOD)
        (tmp_path / "only.txt").write_bytes(b"\xef\xbb\xbf" + entry.encode() + b"\r\n\r\n")
        conversion = convert("yolo", labels, only=tmp_path / "only.txt")
        assert conversion.faults == []
        assert [image["file_name"] for image in conversion.content["images"]] == ["b.png"]

    def test_of_a_list_that_names_others(self, tmp_path: Path) -> None:
        labels = write(tmp_path, GOOD)
        (tmp_path / "only.txt").write_text("other/b\n")
        with pytest.raises(YolactError, match=r"none of the images in the list .*: other/b"):
            convert("yolo", tmp_path / "labels", only=tmp_path / "only.txt")
        (tmp_path / "only.txt").write_text("b\nc\nd\n")
        conversion = convert("yolo", labels, only=tmp_path / "only.txt")
        assert conversion.content["annotations"] == []
        assert conversion.faults == [f"2 names are in {tmp_path}/only.txt, but there is no such image: c, d"]


class TestDataset:
    def write(self, root: Path, text: str) -> Path:
        for part in ("train", "val"):
            write_image(root / "images" / part, "a.png")
            (root / "labels" / part).mkdir(parents=True)
            (root / "labels" / part / "a.txt").write_text(GOOD)
        spec = root / "data.yaml"
        spec.write_text(f"{text}\nnames: {{0: yes}}\n")
        return spec

    @pytest.mark.parametrize(
        "text",
        [
            "train: images/train\nval: images/val",
            "path: .\ntrain: ../images/train\nval: [images/val]",
            "path: gone\ntrain: images/train\nval: images/val\ntest:",
        ],
    )
    def test_all_parts_are_converted(self, tmp_path: Path, text: str) -> None:
        spec = self.write(tmp_path / "d", text)
        parts, dataset = convert_yolo_dataset(spec, tmp_path / "out")
        assert list(parts) == ["train", "val"]
        assert all(len(part.content["annotations"]) == 1 for part in parts.values())
        assert dataset == {
            "name": "data",
            "train": {"images": "../d/images/train", "annotations": "annotations/instances_train.json"},
            "val": {"images": "../d/images/val", "annotations": "annotations/instances_val.json"},
        }

    def test_lists_of_images(self, tmp_path: Path) -> None:
        spec = self.write(tmp_path, "train: train.txt\nval: val.txt")
        write_image(tmp_path / "images" / "train", "unlisted.png")
        (tmp_path / "train.txt").write_text("./images/train/a.png\n")
        (tmp_path / "val.txt").write_text(f"{tmp_path}/images/val/a.png\n")
        parts, _ = convert_yolo_dataset(spec, tmp_path)
        assert [len(part.content["images"]) for part in parts.values()] == [1, 1]
        assert parts["val"].images == tmp_path / "images" / "val"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("train: images/gone", "`train`: .*/images/gone does not exist"),
            ("val: images/val", "`train` is no path"),
            ("train: [images/train, images/val]", "`train` is no path of one folder"),
            ("train: list.txt", "none of the 1 image in it exists"),
        ],
    )
    def test_faults(self, tmp_path: Path, text: str, message: str) -> None:
        spec = self.write(tmp_path, text)
        (tmp_path / "list.txt").write_text("gone.png")
        with pytest.raises(YolactError, match=message):
            convert_yolo_dataset(spec, tmp_path)

    def test_the_command_that_resolve_dataset_names_works(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from yolact.cli.data import main

        spec = self.write(tmp_path / "d", "train: images/train\nval: images/val")
        with pytest.raises(YolactError) as caught:
            resolve_dataset(spec)
        command, _, rest = str(caught.value).partition("yolact-data ")[2].partition("; then use --dataset ")
        assert main(command.split()) == 0
        dataset = resolve_dataset(rest)
        assert Path(dataset.train_images).samefile(tmp_path / "d" / "images" / "train")
        assert Path(dataset.val_annotations).is_file()


@pytest.mark.parametrize("seed", range(60))
def test_against_ultralytics(tmp_path: Path, seed: int) -> None:
    """Ultralytics accepts or refuses a file as a whole: so there is one line in it, damaged in some."""
    os.environ.setdefault("YOLO_CONFIG_DIR", str(tmp_path))
    utils = pytest.importorskip("ultralytics.data.utils")
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (int(rng.integers(4, 9)), 2)).round(4)
    numbers: list[Any] = [int(rng.integers(0, 3)), *points.reshape(-1)]
    if seed % 2:
        index = int(rng.integers(1, len(numbers)))
        numbers[index] = rng.choice([-0.5, 1.5, 1.005, 300.0, 7.0])
    if seed % 7 == 3:
        numbers.pop()
    if seed % 11 == 4:
        numbers[0] = 3
    labels = write(tmp_path, " ".join(map(str, numbers)))
    image = tmp_path / "images" / "train" / "a.png"
    _, found, _, segments, _, _, _, _, corrupt, message = utils.verify_image_label(
        (str(image), str(labels / "a.txt"), "", False, 3, 0, 0, False)
    )
    try:
        content = convert("yolo", labels).content
    except YolactError as error:
        assert corrupt, error
        return
    assert not corrupt, message
    (annotation,) = content["annotations"]
    assert annotation["category_id"] == found[0, 0]
    theirs = segments[0].clip(0, 1) * (WIDTH, HEIGHT)
    assert np.allclose(np.reshape(annotation["segmentation"][0], (-1, 2)), theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.1 0.1 0.2 " + "x" * 10_000, "'x{40}' is not a number"),
        ("1" * 10_000 + " 0.1 0.1 0.2 0.2 0.3 0.3", "class 1{40}; there are names"),
        ("nan 0.1 0.1 0.2 0.2 0.3 0.3", "class nan"),
        ("0 1e999 0.1 0.2 0.2 0.3 0.3", "not finite"),
    ],
)
def test_odd_lines_are_faults_of_one_short_line(tmp_path: Path, text: str, message: str) -> None:
    (fault,) = convert("yolo", write(tmp_path, f"{text}\n{GOOD}\n")).faults
    assert re.search(message, fault) and len(fault) < 400


def test_a_text_file_beyond_the_limit_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = write(tmp_path, f"{GOOD}\n" * 100)
    (labels / "b.txt").write_text(GOOD)
    monkeypatch.setenv("YOLACT_MAX_LIST_BYTES", "1000")
    (fault,) = convert("yolo", labels).faults
    assert "a.txt has more bytes than the 1,000 allowed" in fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"names: {{{'9' * 30}: cat}}", r"class number 9{30} in `names`"),
        ("names: [" + "x" * 5000 + "]", "5,000 characters"),
        ('names: ["\\ud800"]', "control characters"),
        (
            "names: [" + ", ".join(f"c{number}" for number in range(60)) + "]",
            "60 class names, more than the 50",
        ),
    ],
)
def test_class_names_beyond_the_limits(tmp_path: Path, monkeypatch, text: str, message: str) -> None:
    monkeypatch.setenv("YOLACT_MAX_CLASSES", "50")
    with pytest.raises(YolactError, match=message):
        convert("yolo", write(tmp_path, GOOD, text))


def test_a_list_of_absolute_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD, "train: train.txt\nnames: [cat]\n")
    image = tmp_path / "images" / "train" / "b.png"
    (tmp_path / "train.txt").write_text(f"images/train/a.png\n{image}\nbad\0name.png\n{'x' * 300}.png\n")
    monkeypatch.chdir(tmp_path)
    parts, _ = convert_yolo_dataset(Path("data.yaml"), Path("out"))
    assert len(parts["train"].content["images"]) == 2
    (tmp_path / "train.txt").write_text("images/train/a.png\n" + "a/" * 5000)
    with pytest.raises(YolactError, match="line 2 has more characters than the 4,096 allowed"):
        convert_yolo_dataset(Path("data.yaml"), Path("out"))
