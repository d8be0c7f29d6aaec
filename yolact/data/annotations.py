"""COCO annotation files, as other people's tools write them: read, checked and made uniform."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from yolact.config import Classes
from yolact.data.reader.entries import EntryReader
from yolact.data.reader.findings import Findings
from yolact.data.reader.masks import pack_polygons
from yolact.data.reader.roboflow import without_root
from yolact.data.reader.values import shown
from yolact_runtime.classes import resolve_classes
from yolact_runtime.errors import YolactError
from yolact_runtime.untrusted import beyond, check_values, read_bytes

log = logging.getLogger(__name__)

_LISTS = ("images", "annotations", "categories")
# The keys of an annotation that are used; a copy of these takes less memory than the rest.
_USED = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}


@dataclass(frozen=True)
class AnnotationFile:
    """A COCO annotation file in one form, whatever form it was written in.

    It may be shared: change nothing in it.

    Attributes:
        path: The file.
        images: Entries with a whole number `id`, each once, and a text `file_name`; `height` and `width` are
            positive whole numbers, or None if the file does not say.
        annotations: Entries with whole numbers `id` (each once), `image_id` and `category_id` (both listed),
            `bbox` [x, y, width, height], `area` (None if the file has none), `iscrowd` 0 or 1, and
            `segmentation`: polygons (list of arrays), compressed RLE, or None without a mask.
        categories: Entries with a whole number `id`, each once, and a text `name`.
        findings: What was wrong or unusual. Entries with an error are not in the lists.
        dropped: How many annotations of the file are not in the list.
        status: (n,) uint8 for each annotation, what it is to training: an index of `consistency.STATUS`.
        more: The other keys of the file.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    findings: Findings
    dropped: int
    status: np.ndarray
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> Classes:
        """Class names and category ids, sorted by id.

        Raises:
            YolactError: there are none, or two have the same name.
        """
        named = {category["id"]: category["name"] for category in self.categories}
        if not named:
            raise YolactError(f"{self.path}: 'categories' is empty; there is nothing to learn")
        ids = sorted(named)
        return Classes(tuple(named[number] for number in ids), tuple(ids))

    def only(self, categories: Collection[int]) -> AnnotationFile:
        """The same with the annotations of these categories only; all images stay."""
        chosen = np.array([entry["category_id"] in categories for entry in self.annotations], bool)
        return replace(
            self,
            annotations=[self.annotations[row] for row in np.flatnonzero(chosen)],
            categories=[category for category in self.categories if category["id"] in categories],
            status=self.status[chosen],
        )

    def images_without(self, categories: Collection[int]) -> set[int]:
        """Ids of the images whose annotations are all of other categories; not of those without any."""
        every = {entry["image_id"] for entry in self.annotations}
        return every - {e["image_id"] for e in self.annotations if e["category_id"] in categories}


def read_annotations(path: str | Path, ignored: Sequence[str] = ()) -> AnnotationFile:
    """Read a COCO annotation file for training or evaluation; unusual spellings are logged, once.

    The file that was read last is kept: reading it again costs nothing, until `forget_annotations`.

    Args:
        path: The file.
        ignored: Kinds of errors that do not matter to the caller.

    Raises:
        YolactError: it cannot be read, or an entry is wrong or ambiguous; names file, entry and value.
    """
    path = Path(path)
    try:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
    except OSError:
        stamp = (0, 0)  # reading it says what is wrong
    file = _read_once(path, stamp)
    file.findings.raise_errors(path, ignored)
    return file


def forget_annotations() -> None:
    """Release the file that `read_annotations` keeps."""
    _read_once.cache_clear()


def read_classes(annotations: str | Path, chosen: Sequence[str | int] = ()) -> Classes:
    """Class names and category ids of a COCO annotation file, sorted by id.

    Args:
        annotations: The file.
        chosen: Names or ids of the classes to learn; empty for all.

    Raises:
        YolactError: as `read_annotations`, or there are no categories.
        UsageError: the file does not have a chosen class.
    """
    classes = read_annotations(annotations, ignored=["no images"]).classes
    indices = resolve_classes(chosen or None, classes.names, classes.category_ids, "dataset.classes")
    if indices is None:
        return classes
    rows = sorted(indices)
    return Classes(
        tuple(classes.names[row] for row in rows), tuple(classes.category_ids[row] for row in rows)
    )


@lru_cache(maxsize=1)
def _read_once(path: Path, stamp: tuple[int, int]) -> AnnotationFile:
    """Read the file whose modification time and size are `stamp`."""
    file = parse_annotations(path)
    file.findings.log(path, log)
    return file


def parse_annotations(path: str | Path, keep: int | None = 3, repair: bool = False) -> AnnotationFile:
    """Read a COCO annotation file with everything that is wrong with it.

    Args:
        path: The file.
        keep: How many findings of each kind are kept; None for all.
        repair: Keep all keys of the entries, and read more than what has one meaning only: polygons of pairs,
            ids that are text in one list and numbers in another, ids that are no numbers.

    Raises:
        YolactError: it cannot be read at all; names the file.
    """
    path = Path(path)
    collecting = gc.isenabled()
    gc.disable()  # it would search millions of new objects again and again, and find nothing
    try:
        content = _load(path, repair)
        findings = Findings(keep)
        lists = {key: _list(path, content, key, findings) for key in _LISTS}
        lists["categories"] = without_root(path, lists["categories"], lists["annotations"])
        reader = EntryReader(findings, repair)
        categories = reader.categories(lists["categories"])
        images = reader.images(lists["images"])
        annotations, status = reader.annotations(lists["annotations"])
        more = {key: value for key, value in content.items() if key not in _LISTS}
        dropped = len(lists["annotations"]) - len(annotations)
        return AnnotationFile(path, images, annotations, categories, findings, dropped, status, more)
    finally:
        if collecting:
            gc.enable()


def _load(path: Path, whole: bool) -> dict[str, Any]:
    """The JSON object in a file, in any of JSON's encodings, with or without a byte order mark.

    Texts and numbers are checked entry by entry, where they are used; all of them here would take a second
    in a file of a million annotations. Only what is kept and written again can be too deep.
    """
    data = read_bytes(path, "annotation file", "annotation_bytes")
    try:
        text = data.decode(json.detect_encoding(data))
        del data
        content = json.loads(text, object_hook=pack_polygons if whole else _used_keys)
        if whole:
            check_values(content, depth_only=True)
    except UnicodeDecodeError as error:
        raise YolactError(f"annotation file {path} is not text: {error}") from error
    except RecursionError:
        raise YolactError(f"annotation file {path} has more levels than {beyond('depth')}") from None
    except ValueError as error:
        raise YolactError(f"annotation file {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        hint = "; is it a result file?" if isinstance(content, list) else ""
        raise YolactError(
            f"{path} is not a COCO annotation file: it needs an object with a list 'images'{hint}"
        )
    return content


def _list(path: Path, content: dict[str, Any], key: str, findings: Findings) -> list[dict[str, Any]]:
    """The objects of one of the three lists."""
    if key == "annotations" and key not in content:
        findings.add("note", "no annotations", "the file has no 'annotations'; is it a test set?")
        return []
    value = content.get(key)
    if not isinstance(value, list):
        raise YolactError(f"{path} is not a COCO annotation file: it needs an object with a list {key!r}")
    kept = [entry for entry in value if isinstance(entry, dict)]
    if len(kept) < len(value):
        index, wrong = next((i, entry) for i, entry in enumerate(value) if not isinstance(entry, dict))
        message = f"entry {index} of {key!r} is {shown(wrong, 60)}, not an object"
        findings.add("error", "bad entry", message)
    if not value and key != "annotations":
        findings.add("error", f"no {key}", f"{key!r} is empty; there is nothing to learn")
    return kept


def _used_keys(entry: dict[str, Any]) -> dict[str, Any]:
    """`pack_polygons`, without the keys of an annotation that are not used."""
    if "category_id" in entry and not entry.keys() <= _USED:
        entry = {key: entry[key] for key in _USED if key in entry}
    return pack_polygons(entry)
