"""COCO annotation files, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolact.config import Classes
from yolact.data.roboflow import without_root
from yolact_runtime.errors import YolactError
from yolact_runtime.files import read_json

_LISTS = ("images", "annotations", "categories")


def read_annotations(path: str | Path, required: Sequence[str] = _LISTS) -> dict[str, list[dict[str, Any]]]:
    """Read the three lists of a COCO annotation file; those that are not `required` may be missing.

    Raises:
        YolactError: missing, not JSON, or not an annotation file; names the file.
    """
    content = read_json(path, "annotation file")
    lists = {}
    for key in _LISTS:
        value = content.get(key, None if key in required else []) if isinstance(content, dict) else None
        if not (isinstance(value, list) and all(isinstance(entry, dict) for entry in value)):
            raise YolactError(
                f"{path} is not a COCO annotation file: it needs an object with a list {key!r}"
                + ("; is it a result file?" if isinstance(content, list) else "")
            )
        lists[key] = value
    lists["categories"] = without_root(Path(path), lists["categories"], lists["annotations"])
    return lists


def read_classes(annotations: str | Path) -> Classes:
    """Class names and category ids of a COCO annotation file, sorted by id.

    Raises:
        YolactError: not an annotation file, no categories, or a category without a name or a unique id.
    """
    named: dict[int, str] = {}
    for category in read_annotations(annotations, required=["categories"])["categories"]:
        number, name = category.get("id"), category.get("name")
        if type(number) is not int or not isinstance(name, str) or not name.strip():
            raise YolactError(
                f"{annotations}: category {category} needs a whole number 'id' and a text 'name'"
            )
        if number in named:
            raise YolactError(
                f"{annotations}: category id {number} is given twice: {named[number]!r} and {name!r}"
            )
        if name in named.values():
            raise YolactError(
                f"{annotations}: two categories are called {name!r}; rename or merge one of them"
            )
        named[number] = name
    if not named:
        raise YolactError(f"{annotations}: 'categories' is empty; there is nothing to learn")
    ids = sorted(named)
    return Classes(tuple(named[number] for number in ids), tuple(ids))
