from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from yolact.config import DatasetConfig
from yolact.data.layout import default_dataset, read_yaml, resolve_dataset
from yolact_runtime.errors import YolactError


def make(root: Path, *paths: str) -> None:
    for path in paths:
        target = root / path
        if target.suffix:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("{}")
        else:
            target.mkdir(parents=True, exist_ok=True)


COCO = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ((*COCO, "train2017", "val2017"), ("train2017", COCO[0], "val2017", COCO[1])),
        (
            (*COCO, "images/train2017", "images/val2017"),
            ("images/train2017", COCO[0], "images/val2017", COCO[1]),
        ),
        ((*COCO, "images"), ("images", COCO[0], "images", COCO[1])),
        (
            (
                *("annotations/instances_train.json", "annotations/instances_val.json"),
                *("train", "val"),
            ),
            ("train", "annotations/instances_train.json", "val", "annotations/instances_val.json"),
        ),
        (
            ("train.json", "val.json", "train", "val"),
            ("train", "train.json", "val", "val.json"),
        ),
        (
            ("pascal_sbd_train.json", "pascal_sbd_val.json", "img"),
            ("img", "pascal_sbd_train.json", "img", "pascal_sbd_val.json"),
        ),
        (
            ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
            ("train", "train/_annotations.coco.json", "valid", "valid/_annotations.coco.json"),
        ),
        (
            # Two years of annotations, one of images.
            (*COCO, "annotations/instances_val2014.json", "train2017", "val2017"),
            ("train2017", COCO[0], "val2017", COCO[1]),
        ),
    ],
)
def test_usual_folders(tmp_path: Path, paths: tuple[str, ...], expected: tuple[str, ...]) -> None:
    make(tmp_path, *paths)
    assert resolve_dataset(tmp_path) == DatasetConfig(
        tmp_path.name, *(str(tmp_path / path) for path in expected)
    )


def test_yaml_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "in/a.json", "in/pictures", "elsewhere/b.json")
    spec = tmp_path / "in" / "data.yaml"
    spec.write_text(
        "name: screws\ntrain: {images: pictures, annotations: a.json}\n"
        f"val: {{images: pictures, annotations: {tmp_path}/elsewhere/b.json}}\n"
    )
    monkeypatch.chdir("/")
    found = resolve_dataset(str(spec))
    assert found.name == "screws"
    assert Path(found.train_images) == tmp_path / "in" / "pictures"
    assert Path(found.train_annotations) == tmp_path / "in" / "a.json"
    assert Path(found.val_annotations) == tmp_path / "elsewhere" / "b.json"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "no train annotations; looked for annotations/instances_train"),
        ((COCO[1], "images"), "no train annotations"),
        ((*COCO, "train2017"), "no images for instances_val2017.json"),
        (COCO, "no images for instances_train2017.json; looked for train2017"),
        ((*COCO, "annotations/instances_train2014.json", "images"), "several train annotations"),
    ],
)
def test_incomplete_folders_say_what_was_looked_for(
    tmp_path: Path, paths: tuple[str, ...], message: str
) -> None:
    make(tmp_path, *paths)
    with pytest.raises(YolactError, match=message):
        resolve_dataset(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "cannot read dataset"),
        ("- 1", "expected `train:"),
        ("train: {images: i, annotations: a.json}\nval: [1]", "`val` holds a list"),
        ("val: {images: i, annotations: a.json}", "`train` holds nothing"),
        ("test: 1\ntrain: 2", "found test, train"),
        (
            "train: {images: gone, annotations: a.json}\nval: {images: i, annotations: a.json}",
            "/gone is no folder",
        ),
        ("train: {images: i, annotations: i}\nval: {images: i, annotations: a.json}", "/i is no file"),
        ("train: {images: [i], annotations: a.json}", r"images is a list; expected a path"),
        ("train: {images: i, annotations: ''}", "annotations is ''; expected a path"),
        (f"train: {{images: {'x' * 300}, annotations: a.json}}", "/x+ is no folder"),
        (f"train: {{images: i, annotations: {'x' * 300}.json}}", "json is no file"),
        (f"train: {'x' * 300}\nnames: [a]", "describes YOLO's text files"),
        ('train: {images: "\\0", annotations: a.json}', "is no folder"),
        ("name: [a]\ntrain: {images: i, annotations: a.json}", "a text `name`"),
        ("x" * 999, "found 'x"),
        ("{a: " * 3000, "more levels than the 64 allowed"),
    ],
)
def test_bad_yaml_is_reported(tmp_path: Path, text: str, message: str) -> None:
    make(tmp_path, "i", "a.json")
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(YolactError, match=message):
        resolve_dataset(tmp_path / "d.yaml")


def test_neither_folder_nor_yaml(tmp_path: Path) -> None:
    make(tmp_path, "a.json")
    with pytest.raises(YolactError, match="neither a folder nor"):
        resolve_dataset(tmp_path / "a.json")
    with pytest.raises(YolactError, match="does not exist"):
        resolve_dataset(tmp_path / "b")


def parts(dataset: DatasetConfig, root: Path) -> list[str]:
    """Images and annotations of both parts, relative to `root`; empty for a part that is missing."""
    paths = (
        dataset.train_images, dataset.train_annotations, dataset.val_images, dataset.val_annotations
    )  # fmt: skip
    return [str(Path(path).relative_to(root)) if path else "" for path in paths]


@pytest.mark.parametrize(
    ("paths", "images", "annotations"),
    [
        # The original's layout for PASCAL, where the test part is not used for validation.
        (
            ("pascal_train.json", "train_images/1.jpg", "test.json", "test_images/2.jpg"),
            "train_images", "pascal_train.json",
        ),
        (("train.json", "images_train/1.JPG"), "images_train", "train.json"),
        (("annotations/nut_train.json", "JPEGImages/1.jpg"), "JPEGImages", "annotations/nut_train.json"),
        (("train/annotations.json", "train/images/1.jpg"), "train/images", "train/annotations.json"),
        # Not the folder train, which holds no images itself.
        (("train.json", "train/labels", "images/train/1.jpg"), "images/train", "train.json"),
        (("train.json", "1.jpg"), ".", "train.json"),
        # Names in the file may have folders.
        (("train.json", "images/a/1.jpg", "images/b/2.jpg"), "images", "train.json"),
        # One part without a name: CVAT, Roboflow, FiftyOne, Label Studio.
        (
            ("annotations/instances_default.json", "images/default/1.png"),
            "images/default", "annotations/instances_default.json",
        ),
        (("_annotations.coco.json", "1.jpg"), ".", "_annotations.coco.json"),
        (("labels.json", "data/1.jpg"), "data", "labels.json"),
        (("result.json", "images/1.jpg"), "images", "result.json"),
    ],
)  # fmt: skip
def test_folders_without_a_validation_part(
    tmp_path: Path, paths: tuple[str, ...], images: str, annotations: str
) -> None:
    make(tmp_path, *paths)
    assert parts(resolve_dataset(tmp_path), tmp_path) == [images, annotations, "", ""]


def test_yaml_without_a_validation_part(tmp_path: Path) -> None:
    make(tmp_path, "i", "a.json")
    spec = tmp_path / "d.yaml"
    for text in ("", "val:\n", "val: {}\n"):
        spec.write_bytes(
            b"\xef\xbb\xbf" + f"train: {{images: i, annotations: a.json}}\nname: 007\n{text}".encode()
        )
        dataset = resolve_dataset(spec)
        assert parts(dataset, tmp_path) == ["i", "a.json", "", ""]
        assert dataset.name == "007"


class TestDefault:
    def configured(self, root: Path) -> DatasetConfig:
        return DatasetConfig(
            "configured", str(root / "c/images"), str(root / "c/train.json"), str(root / "c/images"), ""
        )

    def test_the_configured_one_if_it_exists(self, tmp_path: Path) -> None:
        make(tmp_path, "c/images", "c/train.json", "data/train.json", "data/train/1.jpg")
        configured = self.configured(tmp_path)
        assert default_dataset(configured, folder=tmp_path / "data") is configured

    def test_the_configured_one_without_its_validation_part(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        make(tmp_path, "c/images", "c/train.json")
        configured = replace(self.configured(tmp_path), val_annotations=str(tmp_path / "c/val.json"))
        assert default_dataset(configured) == replace(configured, val_images="", val_annotations="")
        assert "c/val.json does not exist: there is no validation part" in caplog.text
        make(tmp_path, "c/val.json")
        assert default_dataset(configured) is configured

    @pytest.mark.parametrize("place", ["", "/coco"])
    def test_else_the_one_in_the_data_folder(self, tmp_path: Path, place: str) -> None:
        make(tmp_path, *(f"data{place}/{path}" for path in (*COCO, "images/1.jpg")), "data/other")
        configured = self.configured(tmp_path)
        for part in ("train", "val"):
            found = default_dataset(configured, part, tmp_path / "data")
            assert parts(found, tmp_path / f"data{place}") == ["images", COCO[0], "images", COCO[1]]

    def test_none_and_several(self, tmp_path: Path) -> None:
        configured, data = self.configured(tmp_path), tmp_path / "data"
        with pytest.raises(YolactError, match=r"train\.json does not exist, .*/data .*--dataset"):
            default_dataset(configured, folder=data)
        make(data, "a/train.json", "a/train/1.jpg")
        assert default_dataset(configured, folder=data).name == "a"
        with pytest.raises(YolactError, match="of a val part"):
            default_dataset(configured, "val", folder=data)
        make(data, "b/train.json", "b/train/1.jpg")
        with pytest.raises(YolactError, match=r"several datasets in .*data/a, .*data/b; choose"):
            default_dataset(configured, folder=data)


class TestUltralytics:
    def test_coco_files_in_its_folder_are_read(self, tmp_path: Path) -> None:
        make(tmp_path, "d/annotations/instances_train.json", "d/annotations/instances_val.json")
        make(tmp_path, "d/images/train/1.jpg", "d/images/val/2.jpg")
        spec = tmp_path / "d.yaml"
        spec.write_text("path: d\ntrain: images/train\nval: images/val\nnc: 1\nnames: {0: yes}\n")
        assert parts(resolve_dataset(spec), tmp_path / "d") == [
            "images/train", "annotations/instances_train.json", "images/val", "annotations/instances_val.json"
        ]  # fmt: skip

    def test_json_files_and_roboflow_paths(self, tmp_path: Path) -> None:
        make(tmp_path, "train/_annotations.coco.json", "train/1.jpg", "b.json", "valid/2.jpg")
        spec = tmp_path / "data.yaml"
        spec.write_text("train: ../train\nval: b.json\nnames: [a]\n")
        assert parts(resolve_dataset(spec), tmp_path) == [
            "train", "train/_annotations.coco.json", "valid", "b.json"
        ]  # fmt: skip

    def test_else_the_command_that_converts_is_named(self, tmp_path: Path) -> None:
        make(tmp_path, "images/train/1.jpg", "labels/train/1.txt")
        spec = tmp_path / "data.yaml"
        spec.write_text("train: images/train\nval: images/train\nnames: [a]\n")
        with pytest.raises(YolactError, match=f"yolact-data convert yolo {spec} {tmp_path}/data_coco; then"):
            resolve_dataset(spec)
        spec.write_text("names: [a]\n")
        with pytest.raises(YolactError, match="`train` is nothing"):
            resolve_dataset(spec)


def test_yaml_aliases_that_multiply_end_at_once(tmp_path: Path) -> None:
    lists = "&l0 [" + ", ".join("x" * 9) + "]"
    for level in range(1, 20):
        lists += f", &l{level} [" + ", ".join([f"*l{level - 1}"] * 9) + "]"
    for text in (f"name: [{lists}]", f"train: [{lists}]", f"train: {{images: [{lists}], annotations: a}}"):
        (tmp_path / "d.yaml").write_text(text)
        with pytest.raises(YolactError) as caught:
            resolve_dataset(tmp_path / "d.yaml")
        assert len(str(caught.value)) < 600


def test_yaml_scalars_keep_their_text(tmp_path: Path) -> None:
    texts = ["yes", "no", "007", "1e3", "null", "~", "2024-01-01", "1_000", "0x10", "1:30", ".inf", "=", "on"]
    (tmp_path / "n.yaml").write_text(f"names: [{', '.join(texts)}]\n")
    assert read_yaml(tmp_path / "n.yaml") == {"names": texts}
