from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yolact.data.annotations import read_classes

ROOT = {"id": 0, "name": "fruit", "supercategory": "none"}
APPLE = {"id": 1, "name": "apple", "supercategory": "fruit"}
PEAR = {"id": 2, "name": "pear", "supercategory": "fruit"}


def names(folder: Path, categories: list[dict[str, Any]], used: tuple[int, ...] = (1,)) -> tuple[str, ...]:
    path = folder / "_annotations.coco.json"
    annotations = [
        {
            "id": number, "image_id": 1, "category_id": number, "bbox": [1, 1, 5, 5], "area": 25,
            "iscrowd": 0, "segmentation": [[1, 1, 6, 1, 6, 6, 1, 6]],
        }
        for number in used
    ]  # fmt: skip
    image = {"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}
    path.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": categories}))
    return read_classes(path).names


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([ROOT, APPLE, PEAR], ("apple", "pear")),
        ([APPLE, ROOT], ("apple",)),
        # Projects may be called as their only class.
        ([ROOT, {**APPLE, "name": "fruit"}], ("fruit",)),
        ([ROOT, {**APPLE, "supercategory": "food"}], ("apple",)),
    ],
)
def test_the_root_is_no_class(
    tmp_path: Path, categories: list[dict[str, Any]], expected: tuple[str, ...], caplog
) -> None:
    caplog.set_level("INFO", "yolact")
    assert names(tmp_path, categories) == expected
    names(tmp_path, categories)
    assert caplog.text.count("'fruit' is Roboflow's root category") == 1


@pytest.mark.parametrize(
    ("categories", "used"),
    [
        ([ROOT, APPLE], (0, 1)),
        ([ROOT], ()),
        ([{**ROOT, "supercategory": "food"}, APPLE], (1,)),
        ([{**ROOT, "id": 3}, APPLE], (1,)),
        ([ROOT, {**APPLE, "supercategory": "none"}], (1,)),
    ],
)
def test_other_categories_stay(
    tmp_path: Path, categories: list[dict[str, Any]], used: tuple[int, ...]
) -> None:
    assert len(names(tmp_path, categories, used)) == len(categories)
