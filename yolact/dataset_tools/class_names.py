"""Files of class names: one a line, or YAML with `names`, as Ultralytics' data.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolact.data.layout import read_yaml
from yolact.dataset_tools.builder import clean_label
from yolact_runtime.errors import YolactError
from yolact_runtime.files import is_file, read_text
from yolact_runtime.untrusted import beyond, limit

_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "_darknet.labels")
# The first lines of labelme's lists, which are no classes.
_NO_CLASSES = ("__ignore__", "_background_")
_FORMS = "one a line, or YAML with `names`: a list, or a mapping from numbers"


def read_names(path: Path, first: int) -> dict[int, str]:
    """Class names by category id: those of a text file and of YAML lists are numbered from `first`.

    Raises:
        YolactError: it holds no class names, or one twice; names the file.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        content = read_yaml(path, "class names")
        names = content.get("names") if isinstance(content, dict) else None
        count = content.get("nc") if isinstance(content, dict) else None
    else:
        lines = [line.strip() for line in read_text(path, "class names", "list_bytes").rstrip().split("\n")]
        names, count = [line for line in lines if line not in _NO_CLASSES], None
    return _numbered(path, names, count, first)


def _numbered(path: Path, names: Any, count: Any, first: int) -> dict[int, str]:
    """The names of a list or mapping by number, checked; `count` is how many the file says there are."""
    numbered: dict[int, str] = {}
    seen: set[str] = set()
    pairs = list(names.items() if isinstance(names, dict) else enumerate(names or [], start=first))
    if isinstance(names, str) or not pairs:
        raise YolactError(f"{path} holds no class names: {_FORMS}")
    if len(pairs) > limit("classes"):
        raise YolactError(f"{path} has {len(pairs):,} class names, more than {beyond('classes')}")
    for key, name in pairs:
        try:
            number, label = int(key), clean_label(name)
        except (ValueError, TypeError) as error:
            raise YolactError(
                f"{path}: class {str(key)[:40]!r} in `names`: {error}; expected {_FORMS}"
            ) from None
        if number in numbered or not 0 <= number < 2**63:
            text = "expected different ones, 0 or more and below 2**63"
            raise YolactError(f"{path}: class number {str(number)[:40]} in `names`; {text}")
        if label in seen:
            raise YolactError(f"{path} has the same class name twice: {label!r}")
        numbered[number] = label
        seen.add(label)
    if isinstance(count, str) and count.isdecimal() and len(count) < 19 and int(count) != len(numbered):
        raise YolactError(f"{path}: nc is {count}, but there are {len(numbered)} names")
    return numbered


def find_names(folder: Path) -> dict[int, str]:
    """The class names, numbered from 0, in a file in a folder of YOLO's text, or up to two folders above it.

    Raises:
        YolactError: none found, or damaged ones.
    """
    for near in (folder, *folder.resolve().parents[:2]):
        for name in _FILES:
            if is_file(near / name):
                return read_names(near / name, first=0)
    raise YolactError(
        f"{folder}: no {' or '.join(_FILES[:1] + _FILES[3:])} near it; give the class names with --names"
    )
