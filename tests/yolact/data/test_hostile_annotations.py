"""Annotation files of strangers: values that would end in a signal, a traceback, a hang or all memory."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolact.cli.data import main
from yolact.data.annotations import parse_annotations
from yolact.dataset_tools.check import check_annotations
from yolact.dataset_tools.fix import fix_annotations
from yolact.evaluation.ground_truth import read_ground_truth
from yolact_runtime.errors import YolactError

CONTENT: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
    "categories": [{"id": 1, "name": "nut"}],
    "annotations": [
        {
            "id": number, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 45, "iscrowd": 0,
            "segmentation": [[1, 1, 10, 1, 10, 10]],
        }
        for number in (1, 2)
    ],
}  # fmt: skip

DAMAGED = "damaged segmentation"


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def write(folder: Path, key: str, name: str, value: Any) -> Path:
    """The content with one value of the first entry of a list."""
    content = copy.deepcopy(CONTENT)
    content[key][0][name] = value
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("key", "name", "value", "kind"),
    [
        ("images", "height", 65_536, "bad image size"),
        ("images", "width", 10**30, "bad image size"),
        ("images", "width", "99999999999999999999", "bad image size"),
        ("images", "file_name", "a\ud800.png", "bad image"),
        ("images", "file_name", "a" * 5000, "bad image"),
        ("images", "id", nested(500), "bad image"),
        ("categories", "name", "\udfff", "bad category"),
        ("categories", "name", "a" * 5000, "bad category"),
        ("categories", "id", 2**63, "bad category"),
        ("annotations", "bbox", [1e300, 1e300, 1e300, 1e300], "bad box"),
        ("annotations", "bbox", [10**400, 1, 2, 3], "bad box"),
        ("annotations", "bbox", nested(500), "bad box"),
        ("annotations", "area", 10**400, "bad area"),
        ("annotations", "iscrowd", list(range(10_000)), "bad iscrowd"),
        ("annotations", "image_id", nested(500), "unknown image"),
        ("annotations", "segmentation", [[10**400, 1, 2, 2, 3, 3]], DAMAGED),
        ("annotations", "segmentation", [[-1e6, -1e6, 1e6, -1e6, 1e6, 1e6]], DAMAGED),
        ("annotations", "segmentation", nested(500), DAMAGED),
        ("annotations", "segmentation", {"size": [60, 80], "counts": [10**400]}, DAMAGED),
        ("annotations", "segmentation", {"size": [65_535] * 2, "counts": "o" * 9}, DAMAGED),
        ("annotations", "segmentation", {"size": [60, 80], "counts": "0" * 9000 + "P[4"}, DAMAGED),
        ("annotations", "segmentation", {"size": [60, 80], "counts": "o" * 3_000_000}, DAMAGED),
    ],
)  # fmt: skip
def test_one_bad_value_is_one_finding_of_one_short_line(
    tmp_path: Path, key: str, name: str, value: Any, kind: str
) -> None:
    path = write(tmp_path, key, name, value)
    findings = list(parse_annotations(path).findings)
    assert kind in {finding.kind for finding in findings}
    for finding in findings:
        text = f"{finding.where}{finding.message}"
        assert len(text) < 400 and "\n" not in text and text.isascii()
    assert kind in {finding.kind for finding in check_annotations(path).findings}


@pytest.mark.parametrize("key", ["images", "categories", "annotations"])
def test_other_keys_may_be_anything_but_fix_writes_no_deep_ones(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, key, "comment", [nested(500), "\ud800", 10**400])
    assert not check_annotations(path).count("error")
    read_ground_truth(path, tmp_path)
    with pytest.raises(YolactError, match="more levels than the 64 allowed"):
        fix_annotations(path, tmp_path / "fixed.json")
    path = write(tmp_path, key, "comment", [nested(50), "\ud800", 10**400])
    assert not fix_annotations(path, tmp_path / "fixed.json").count("error")
    content = json.loads((tmp_path / "fixed.json").read_text())
    assert content[key][0]["comment"] == [nested(50), "\ud800", 10**400]


def test_too_many_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = copy.deepcopy(CONTENT)
    content["categories"] += [{"id": number, "name": f"class {number}"} for number in range(2, 30)]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    assert not check_annotations(path).count("error")
    monkeypatch.setenv("YOLACT_MAX_CLASSES", "10")
    assert "too many categories" in {finding.kind for finding in check_annotations(path).findings}


def deep(path: Path) -> None:
    path.write_text("[" * 50_000)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (deep, "more levels than the 64 allowed"),
        (endless, "is a device, not a file"),
        (os.mkfifo, "is a pipe, not a file"),
        (Path.mkdir, "Is a directory|is a folder"),
        (lambda path: path.write_text("[" + "9" * 5000 + "]"), "not valid JSON"),
        (lambda path: path.write_text(" " * 2000), "more bytes than the 1,000 allowed"),
    ],
)
def test_files_that_are_no_annotation_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], message: str
) -> None:
    if "1,000" in message:
        monkeypatch.setenv("YOLACT_MAX_ANNOTATION_BYTES", "1000")
    make(tmp_path / "a.json")
    with pytest.raises(YolactError, match=message):
        parse_annotations(tmp_path / "a.json")


def test_an_image_of_unknown_size_gets_one_within_the_limits(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["images"] = [{"id": 1, "file_name": "gone.png"}]
    content["annotations"][0] |= {"bbox": [0, 0, 1e9, 1e9], "segmentation": []}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    truth = read_ground_truth(path, tmp_path)
    assert (truth.images[0]["height"], truth.images[0]["width"]) == (1, 1)


def test_fix_reports_a_mask_that_the_real_size_rules_out(tmp_path: Path, write_coco, make_square) -> None:
    far = make_square(3, 4, 12, area=None, segmentation=[[3, 4, 200_000, 4, 15, 16]])
    images, path = write_coco([(40, 60)], [far, make_square(3, 4, 12)])
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["height"], image["width"]
    path.write_text(json.dumps(content))
    found = fix_annotations(path, tmp_path / "fixed.json", images)
    assert found.counts["error", DAMAGED] == 1
    fixed = json.loads((tmp_path / "fixed.json").read_text())
    assert [bool(entry["segmentation"]) for entry in fixed["annotations"]] == [False, True]


def test_of_thousands_of_classes_the_first_are_printed(tmp_path: Path, capsys) -> None:
    content = copy.deepcopy(CONTENT)
    content["categories"] += [{"id": number, "name": f"class {number}"} for number in range(2, 2101)]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    assert main(["check", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "and 100 more; --json FILE writes all" in lines and len(lines) < 2100
