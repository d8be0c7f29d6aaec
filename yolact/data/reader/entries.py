"""The entries of an annotation file in one form: ids, names, sizes, flags, boxes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from yolact.data.reader.consistency import check_boxes
from yolact.data.reader.findings import Findings, Level
from yolact.data.reader.masks import read_masks
from yolact.data.reader.rows import Entry, Rows
from yolact.data.reader.values import flag, real_number, shown, whole_number
from yolact.data.segmentation import check_size
from yolact_runtime.typed import nearest
from yolact_runtime.untrusted import beyond, check_text, limit

_BOX = "[x, y, width, height]"
_CATEGORY_IDS = 2**63  # engines hold them in 64 bits
_LARGEST = 1e9  # pixels: boxes beyond are no mistakes of rounding
# What is used of the entries of images and categories; training keeps nothing else.
_USED = {"image": ("height", "width"), "category": ()}


@dataclass
class _Known:
    """The entries of a list by id.

    Attributes:
        entries: By id.
        text: Ids that are text in the file.
        renamed: New ids of entries whose id is no number, or too large; only when repairing.
    """

    entries: dict[int, Entry] = field(default_factory=dict)
    text: set[int] = field(default_factory=set)
    renamed: dict[str | int, int] = field(default_factory=dict)


class EntryReader:
    """Reads the lists of one file: first `categories` and `images`, then `annotations`.

    Args:
        findings: Where to report.
        repair: As in `parse_annotations`.
    """

    def __init__(self, findings: Findings, repair: bool = False) -> None:
        self.findings, self.repair = findings, repair
        self._categories, self._images = _Known(), _Known()

    def categories(self, entries: Sequence[Entry]) -> list[Entry]:
        """The usable categories."""
        known, owners = self._categories, dict[str, int]()
        if len(entries) > limit("classes"):
            message = f"there are {len(entries):,} categories, more than {beyond('classes')}"
            self.findings.add("error", "too many categories", message)
            entries = entries[: limit("classes")]
        for entry in self._with_ids(entries, known, "category", "name"):
            number, name = entry["id"], entry["name"]
            if number in known.entries:
                other = known.entries[number]["name"]
                message = f"category id {number} is given twice: {other!r} and {name!r}"
                self.findings.add("note" if name == other else "error", "duplicate category id", message)
                continue
            if name in owners:
                message = (
                    f"two categories are called {name!r} ({owners[name]} and {number});"
                    " rename or merge one of them"
                )
                level: Level = "note" if self.repair else "error"
                self.findings.add(level, "duplicate category name", message)
            owners.setdefault(name, number)
            known.entries[number] = entry
        return list(known.entries.values())

    def images(self, entries: Sequence[Entry]) -> list[Entry]:
        """The usable images."""
        known, files = self._images, dict[str, int]()
        for entry in self._with_ids(entries, known, "image", "file_name"):
            number, name = entry["id"], entry["file_name"]
            if number in known.entries:
                other = known.entries[number]["file_name"]
                message = f"image id {number} is given twice ({other}, {name})"
                self.findings.add("note" if name == other else "error", "duplicate image id", message, number)
                continue
            if name in files:
                message = f"{name} is the file of image {files[name]}, too"
                self.findings.add("warning", "file listed twice", message, number)
            files.setdefault(name, number)
            entry["height"], entry["width"] = self._sides(entry)
            known.entries[number] = entry
        return list(known.entries.values())

    def _with_ids(self, entries: Sequence[Entry], known: _Known, kind: str, text: str) -> list[Entry]:
        """Copies of the entries with a whole number `id` and a text at `text`; others are reported."""
        found = []
        for entry in entries:
            raw, name = entry.get("id"), entry.get(text)
            number = whole_number(raw)
            too_large = kind == "category" and number is not None and abs(number) >= _CATEGORY_IDS
            if too_large:
                number = None
            if self.repair and number is None and isinstance(raw, str if not too_large else (str, int)):
                number = known.renamed.setdefault(raw, 1 + len(known.renamed) + _highest(entries))
                self.findings.add("note", f"{kind} ids that are no numbers", f"{shown(raw)} becomes {number}")
            elif number is not None and type(raw) is not int:
                message = f"id {shown(raw)} is read as {number}"
                self.findings.add("note", f"{kind} ids that are not written as whole numbers", message)
                if isinstance(raw, str):
                    known.text.add(number)
            if kind == "category" and type(name) in (int, float):
                self.findings.add("note", "class names that are numbers", f"{shown(name)} is read as text")
                name = str(name)
            name = name.strip("\ufeff") if isinstance(name, str) else ""
            if problem := _name_problem(name):
                self.findings.add("error", f"bad {kind}", f"{kind} {shown(raw)}: its {text!r} {problem}")
            elif number is None or not name.strip():
                message = f"{kind} {shown(entry)} needs a whole number 'id' and a text {text!r}"
                if too_large:
                    message = f"category id {shown(raw)} is too large; allowed: below 2**63 (yolact-data fix)"
                elif isinstance(raw, str) and number is None:
                    message += f"; its id is the text {shown(raw)}: yolact-data fix numbers such entries"
                self.findings.add("error", f"bad {kind}", message)
            else:
                kept = entry if self.repair else {key: entry.get(key) for key in _USED[kind]}
                found.append({**kept, "id": number, text: name})
        return found

    def _sides(self, image: Entry) -> tuple[int | None, int | None]:
        """Height and width of an image; None, None if the file does not say."""
        given = [image.get(side) for side in ("height", "width")]
        sides = [whole_number(value) for value in given]
        name, number = image["file_name"], image["id"]
        if all(type(value) is int and value > 0 for value in given):
            return self._within_limits(image, *given)
        absent = [value is None or side in (0, -1) for value, side in zip(given, sides, strict=True)]
        if any(not gone and (side is None or side < 1) for gone, side in zip(absent, sides, strict=True)):
            text = f"height {shown(given[0])}, width {shown(given[1])}"
            message = f"{name} has {text}; expected whole numbers of pixels"
            self.findings.add("error", "bad image size", message, number)
            return None, None
        if any(absent):
            self.findings.add("warning", "no image size", f"{name}: the file does not say its size", number)
            return None, None
        message = f"{name}: height {shown(given[0])}, width {shown(given[1])} are read as numbers"
        self.findings.add("note", "image sizes that are not written as whole numbers", message, number)
        return self._within_limits(image, *sides)

    def _within_limits(self, image: Entry, height: Any, width: Any) -> tuple[int | None, int | None]:
        """The sides of an image; None, None if it is larger than allowed, which is reported."""
        try:
            check_size(height, width)
        except ValueError as error:
            self.findings.add("error", "bad image size", f"{image['file_name']}: {error}", image["id"])
            return None, None
        return height, width

    def annotations(self, entries: Sequence[Entry]) -> tuple[list[Entry], np.ndarray]:
        """The usable annotations, made uniform in place, and the status of each (n,) uint8."""
        rows = Rows(list(entries), self.findings)
        images, categories = self._images, self._categories
        wrong = self._references(rows, "image_id", images) | self._references(rows, "category_id", categories)
        rows.drop(wrong | self._flags(rows))
        sides = np.array([(e["height"] or 0, e["width"] or 0) for e in images.entries.values()], np.int64)
        places = dict(zip(images.entries, range(len(sides)), strict=True))
        order = np.fromiter((places[entry["image_id"]] for entry in rows.entries), np.int64)
        sizes = sides.reshape(-1, 2)[order]
        extents, damaged = read_masks(rows.entries, sizes, rows.report, self.repair)
        boxes, wrong = self._boxes(rows, extents)
        status, odd = check_boxes(rows.entries, boxes, extents, sizes, damaged, rows.report_all, self.repair)
        self._areas(rows)
        # The region of an object whose mask is lost is still ignored, instead of being taken for background.
        dropped = wrong | odd | (set() if self.repair else damaged)
        status = status[rows.drop(dropped)]
        self._number(rows)
        return rows.entries, status

    def _references(self, rows: Rows, key: str, known: _Known) -> set[int]:
        """Make the ids at `key` whole numbers; returns the rows whose id cannot be used."""
        kind, listed, end = "category", "categories", ""
        level: Level = "error"
        if key == "image_id":
            kind, listed, end, level = "image", "images", "; the annotation is skipped", "warning"
        bad: list[int] = []
        unknown: list[int] = []
        mixed: list[int] = []
        spelled: list[int] = []
        raw: list[Any] = [entry.get(key) for entry in rows.entries]
        plain = known.entries.keys() - known.text
        for row, value in enumerate(raw):
            if type(value) is int and value in plain:
                continue
            new = known.renamed.get(value) if isinstance(value, (str, int)) else None
            number = whole_number(value) if new is None else new
            if number is None:
                bad.append(row)
            elif number not in known.entries:
                unknown.append(row)
            elif new is not None:
                rows.entries[row][key] = number
            else:
                text = isinstance(value, str) != (number in known.text)
                (mixed if text else spelled).append(row)
                rows.entries[row][key] = number
        first = nearest("", map(str, list(known.entries)[:5]))
        rows.report_all(
            "error",
            f"unknown {kind}",
            bad,
            lambda row: f"{key} is {shown(raw[row])}, not a whole number",
        )
        rows.report_all(
            level,
            f"unknown {kind}",
            unknown,
            lambda row: f"{key} {shown(raw[row])} is not in {listed!r} ({first}){end}",
        )
        remedy = "" if self.repair else "; write both as whole numbers (yolact-data fix does)"

        def contradiction(row: int) -> str:
            number, text = rows.entries[row][key], isinstance(raw[row], str)
            listed_as = f"the number {number}" if text else f"the text {str(number)!r}"
            own = f"the {'text' if text else 'number'} {shown(raw[row])}"
            return f"{key} is {own}, but the id in {listed!r} is {listed_as}{remedy}"

        rows.report_all("note" if self.repair else "error", f"{key} as text", mixed, contradiction)
        rows.report_all(
            "note",
            f"{key} that is not written as a whole number",
            spelled,
            lambda row: f"{shown(raw[row])} is read as {rows.entries[row][key]}",
        )
        return {*bad, *unknown, *(() if self.repair else mixed)}

    def _flags(self, rows: Rows) -> set[int]:
        """Make `iscrowd` 0 or 1; returns the rows where it is neither."""
        bad: list[int] = []
        spelled: list[int] = []
        raw: list[Any] = [entry.get("iscrowd") for entry in rows.entries]
        for row, value in enumerate(raw):
            if type(value) is int and value in (0, 1):
                continue
            truth = flag(value)
            if truth is None:
                bad.append(row)
                continue
            if isinstance(value, str):
                spelled.append(row)
            rows.entries[row]["iscrowd"] = int(truth)
        rows.report_all(
            "error", "bad iscrowd", bad, lambda row: f"iscrowd is {shown(raw[row])}; allowed: 0, 1"
        )
        rows.report_all(
            "note", "iscrowd as text", spelled, lambda row: f"{shown(raw[row])} is read as {flag(raw[row]):d}"
        )
        return set(bad)

    def _boxes(self, rows: Rows, extents: np.ndarray) -> tuple[np.ndarray, set[int]]:
        """Read the boxes, and compute missing ones from the masks.

        Returns:
            (n, 4) float64 x, y, width, height; the rows without a box.
        """
        raw: list[Any] = [entry.get("bbox") for entry in rows.entries]
        boxes = np.full((len(raw), 4), np.nan)
        spelled: list[int] = []
        fours = [row for row, box in enumerate(raw) if type(box) is list and len(box) == 4]
        try:
            values = array("d", chain.from_iterable(raw[row] for row in fours))
            boxes[fours] = np.frombuffer(values).reshape(-1, 4)
        except (TypeError, OverflowError):
            numbers = {row: [real_number(value) for value in raw[row]] for row in fours}
            spelled += [r for r, box in numbers.items() if None not in box and str in map(type, raw[r])]
            for row, box in numbers.items():
                if None not in box:
                    boxes[row] = box
        for row in spelled:
            rows.entries[row]["bbox"] = boxes[row].tolist()
        rows.report_all(
            "note", "numbers as text", spelled, lambda row: f"bbox {shown(raw[row])} is read as numbers"
        )
        finite = (np.abs(boxes) <= _LARGEST).all(1)
        masked = np.isfinite(extents).all(1)
        empty = np.array([box is None or box == [] for box in raw], bool)
        computed = masked & (empty | (~finite if self.repair else False))
        if self.repair:
            computed |= masked & finite & (boxes[:, 2:] <= 0).any(1)
        boxes[computed] = extents[computed]
        boxes[computed, 2:] -= extents[computed, :2]
        for row in np.flatnonzero(computed).tolist():
            rows.entries[row]["bbox"] = boxes[row].tolist()
        rows.report_all(
            "note", "no box", np.flatnonzero(computed & empty).tolist(), lambda row: "it is the mask's"
        )
        rows.report_all(
            "note",
            "box without area",
            np.flatnonzero(computed & ~empty).tolist(),
            lambda row: f"bbox {shown(raw[row])} is replaced by the mask's",
        )
        wrong = np.flatnonzero(~(finite | computed)).tolist()
        rows.report_all(
            "error",
            "bad box",
            wrong,
            lambda row: f"bbox is {shown(raw[row])} instead of {_BOX}",
        )
        return boxes, set(wrong)

    def _areas(self, rows: Rows) -> None:
        """Make `area` a number, or None if it is missing or cannot be used."""
        spelled: list[int] = []
        bad: list[int] = []
        raw: list[Any] = [entry.get("area") for entry in rows.entries]
        for row, value in enumerate(raw):
            if type(value) in (int, float) and 0 <= value < _LARGEST**2:
                continue
            number = real_number(value)
            number = number if number is not None and 0 <= number < _LARGEST**2 else None
            rows.entries[row]["area"] = number
            if value is not None:
                (bad if number is None else spelled).append(row)
        rows.report_all(
            "note", "numbers as text", spelled, lambda row: f"area {shown(raw[row])} is read as a number"
        )
        rows.report_all(
            "note", "bad area", bad, lambda row: f"area is {shown(raw[row])}; it is computed from the mask"
        )

    def _number(self, rows: Rows) -> None:
        """Make the annotations' own ids whole numbers, each once; new ones follow the highest."""
        ids = [whole_number(value) for value in rows.ids]
        highest = max((number for number in ids if number is not None), default=0)
        seen: set[int] = set()
        again: list[int] = []
        missing: list[int] = []
        for row, number in enumerate(ids):
            if number is None or number in seen:
                (missing if number is None else again).append(row)
                highest += 1
                number = highest
            seen.add(number)
            rows.entries[row]["id"] = number
        text = "it is numbered {}"
        rows.report_all(
            "note",
            "duplicate annotation id",
            again,
            lambda row: f"the id is given twice; {text.format(rows.entries[row]['id'])}",
        )
        rows.report_all(
            "note",
            "no annotation id",
            missing,
            lambda row: (
                f"the id is {shown(rows.ids[row], 40)}, no number; {text.format(rows.entries[row]['id'])}"
            ),
        )
        rows.report_all(
            "warning",
            "annotation id 0",
            [row for row, number in enumerate(ids) if number == 0],
            lambda row: "pycocotools' own evaluation never counts annotation id 0 as found",
        )


def _name_problem(name: str) -> str:
    """What is wrong with a class or file name that is no text that can be written; empty if nothing is."""
    try:
        check_text(name)
    except ValueError:
        return f"is {shown(name)}: it has half a character (a lone surrogate)"
    too_long = len(name) > limit("name")
    return f"has {len(name):,} characters, more than {beyond('name')}" if too_long else ""


def _highest(entries: Sequence[Entry]) -> int:
    """The highest whole number among the ids, but for those that are very large; 0 if there is none."""
    numbers = (whole_number(entry.get("id")) or 0 for entry in entries)
    return max((number for number in numbers if number < _CATEGORY_IDS // 2), default=0)
