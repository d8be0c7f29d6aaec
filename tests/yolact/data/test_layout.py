from __future__ import annotations

from pathlib import Path

import pytest

from yolact.config import DatasetConfig
from yolact.data.layout import resolve_dataset
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
        ((COCO[0], "images"), "no val annotations"),
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
        ("train: {images: i, annotations: a.json}", "`val` holds"),
        ("test: 1\ntrain: 2", "found test, train"),
        (
            "train: {images: gone, annotations: a.json}\nval: {images: i, annotations: a.json}",
            "is not a folder",
        ),
        ("train: {images: i, annotations: i}\nval: {images: i, annotations: a.json}", "is not a file"),
        ("train: {images: 3, annotations: a.json}\nval: {images: i, annotations: a.json}", "expected a path"),
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
