"""Ids and file names of images: from a COCO annotation file, or counted and from their paths."""

from __future__ import annotations

import itertools
import logging
import reprlib
from collections import defaultdict
from pathlib import Path
from typing import Any

from yolact_runtime.errors import YolactError
from yolact_runtime.frames import Frame
from yolact_runtime.sinks.names import FileNames
from yolact_runtime.untrusted import beyond, limit, parse_json, read_bytes

log = logging.getLogger(__name__)


class ImageIds:
    """The image ids of a COCO annotation file; it needs no "annotations".

    Args:
        path: The file.

    Attributes:
        file_names: `file_name` of each id.
        categories: Name of each category id; empty without categories.

    Raises:
        YolactError: it cannot be read or has no usable "images".
    """

    def __init__(self, path: str | Path) -> None:
        """Read the file."""
        content = _read_lists(path)
        try:
            images = [(str(image["file_name"]), image["id"]) for image in content["images"]]
            others = [image_id for _, image_id in images if type(image_id) is not int]
            self.categories = {
                category["id"]: str(category["name"]) for category in content.get("categories", [])
            }
        except (TypeError, KeyError, AttributeError):
            raise YolactError(
                f'annotation file {path} needs "images", each with "id" and "file_name", as in COCO'
            ) from None
        if others:
            raise YolactError(
                f"annotation file {path}: image id {reprlib.repr(others[0])}; whole numbers are allowed"
            )
        if any(len(name) > limit("name") for name, _ in images):
            raise YolactError(
                f"annotation file {path}: a file_name has more characters than {beyond('name')}"
            )
        self.path = path
        self.file_names = {image_id: name for name, image_id in images}
        self._entries: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        for name, image_id in images:
            parts = _parts(name)
            self._entries[parts[-1] if parts else ""].append((parts, image_id))

    def find(self, path: Path) -> int | None:
        """The id of the image whose path shares the most trailing parts with `path`; None if there is none.

        Raises:
            YolactError: several images match equally well.
        """
        parts = _parts(path.as_posix())
        candidates = [
            (_common_tail(parts, entry), image_id) for entry, image_id in self._entries.get(parts[-1], [])
        ]
        if not candidates:
            return None
        best = max(length for length, _ in candidates)
        ids = [image_id for length, image_id in candidates if length == best]
        if len(set(ids)) > 1:
            raise YolactError(f"image {path}: {self.path} has {len(ids)} images of that name")
        return ids[0]

    def contradictions(self, class_ids: tuple[int, ...], class_names: tuple[str, ...]) -> list[str]:
        """Category ids with another name in this file than in the engine, one sentence each."""
        engine = dict(zip(class_ids, class_names, strict=True))
        return [
            f"category {key} is {reprlib.repr(self.categories[key])} in {self.path}"
            f" but {name!r} in the engine"
            for key, name in engine.items()
            if key in self.categories and self.categories[key] != name
        ]


def _read_lists(path: str | Path) -> Any:
    """The content of an annotation file without its annotations, which take most of the memory."""
    try:
        data = read_bytes(path, "annotation file", "annotation_bytes")
        return parse_json(data, lambda entry: None if {"image_id", "category_id"} <= entry.keys() else entry)
    except ValueError as error:
        raise YolactError(f"annotation file {path} is not valid JSON: {error}") from error


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _common_tail(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    pairs = zip(reversed(a), reversed(b), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class ImageNumbers:
    """The image id and file name of every frame: from an annotation file, or counted from 1 and by its path.

    Args:
        ids: Ids of the annotation file; None to count.
        total: Number of frames; None if unknown.
        names: The file names, unless there is an annotation file.

    Attributes:
        unlisted: Number of frames claimed so far without an id of their own.
    """

    def __init__(
        self, ids: ImageIds | None = None, total: int | None = None, names: FileNames | None = None
    ) -> None:
        self.unlisted = 0
        self._ids = ids
        self._names = names or FileNames()
        self._total = total
        self._owners: dict[int, str] = {}
        self._carried: set[int] = set()
        self._highest = 0
        self._last: tuple[int, int | None] | None = None

    def find(self, frame: Frame) -> int | None:
        """The id of a frame; None if the annotation file has none. Thread-safe."""
        if self._ids is None:
            number = frame.index + 1
            if number in self._carried:
                # The images changed since then: take an id beyond all that counting gives.
                number += self._highest + (self._total or 1 << 31)
            return number
        try:
            return self._ids.find(Path(frame.name))
        except YolactError:
            return None

    def file_name(self, number: int, name: str) -> str:
        """The `file_name` of the image with this id, by the name of its frame; called in frame order."""
        listed = self._ids.file_names.get(number) if self._ids else None
        return self._names.of(name) if listed is None else listed

    def claim(self, frame: Frame) -> int | None:
        """Same as `find`, in frame order; reports frames without an id and with a repeated one.

        Several sinks may claim the same frame one after the other.
        """
        if self._last is None or self._last[0] != frame.index:
            self._last = frame.index, self._claim(frame)
        return self._last[1]

    def carry(self, number: int | None, name: str) -> int | None:
        """Register the id that an earlier run gave to `name`; None if another image has it."""
        if number is None:
            return None
        if self._ids is None:
            self._carried.add(number)
            self._highest = max(self._highest, number)
            return number
        return number if self._owners.setdefault(number, name) is name else None

    def _claim(self, frame: Frame) -> int | None:
        """The id of a frame seen for the first time; None, logged and counted, if it has none of its own."""
        if self._ids is None:
            return self.find(frame)
        try:
            number = self._ids.find(Path(frame.name))
            if number is None:
                raise YolactError(f"image {frame.name} is not in {self._ids.path}")
            owner = self._owners.setdefault(number, frame.name)
            if owner is not frame.name:
                raise YolactError(f"image {frame.name} has the same id {number} as {owner}")
        except YolactError as error:
            log.error("%s; it is left out of the JSON", error)
            self.unlisted += 1
            return None
        return number
