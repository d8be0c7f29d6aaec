"""Annotation files that teach nothing, or something wrong, end a training before its first step."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from yolact.cli.train import main

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def train(shapes: Path, tmp_path: Path) -> Callable[..., int]:
    """`train(part, change, *options)`: train one iteration on a copy with a changed annotation file."""

    def train(part: str, change: Change, *options: str) -> int:
        root = tmp_path / "data"
        if not root.exists():
            shutil.copytree(shapes, root)
        path = root / "annotations" / f"instances_{part}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        common = ["--config", "yolact_tiny", "--device", "cpu", "--workers", "0", "--batch-size", "2"]
        folder = ["--save-folder", str(tmp_path / "w"), "--dataset", str(root), "--iterations", "1"]
        return main([*common, *folder, "--set", "train.init=random", "--threads", "1", *options])

    return train


def set_all(**values: Any) -> Change:
    return lambda content: [entry.update(values) for entry in content["annotations"]]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("train", set_all(iscrowd=True), "nothing to learn.*crowd_as_instances=true"),
        ("train", set_all(bbox=[5, 5, 0, 0]), "no area.*yolact-data fix"),
        ("train", set_all(image_id=10**6), "images that it does not list"),
        ("train", lambda c: c["annotations"][3].update(segmentation=[[1, 2, 3]]), "odd number"),
        ("val", lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), "bbox is"),
        ("val", lambda c: c["categories"][0].update(id="one"), "whole number"),
        ("val", lambda c: c["images"][1].update(file_name="gone.png"), "gone.png"),
        ("val", lambda c: c["images"][1].update(width=7, height=9), "7x9"),
    ],
)
def test_training_does_not_start(train, part: str, change: Change, message: str, capsys) -> None:
    assert train(part, change, "--validate-every", "1") == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "loss" not in err
    assert "Traceback" not in err
    assert re.search(message, err), err


def test_turned_images_end_a_training(train, tmp_path: Path, capsys) -> None:
    def turn(content: dict[str, Any]) -> None:
        for image in content["images"]:
            path = tmp_path / "data" / "train" / image["file_name"]
            exif = Image.Exif()
            exif[0x112] = 8
            Image.open(path).convert("RGB").crop((0, 0, 90, 70)).save(path.with_suffix(".jpg"), exif=exif)
            image.update(file_name=path.with_suffix(".jpg").name, height=70, width=90)
        for entry in content["annotations"]:
            entry.update(segmentation=[[1, 1, 9, 1, 9, 9]], bbox=[1, 1, 8, 8], iscrowd=0)

    assert train("train", turn) == 1
    assert "EXIF" in capsys.readouterr().err


def test_brushed_crowds_are_trained_on_as_instances(train, capsys) -> None:
    assert train("train", set_all(iscrowd=1), "--set", "dataset.crowd_as_instances=true") == 0
