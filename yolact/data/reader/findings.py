"""What is wrong or unusual in an annotation file: counted by kind, with examples."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from yolact_runtime.errors import YolactError, counted

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        level: An "error" stops training and evaluation; a "warning" is handled, but should be looked at; a
            "note" is an unusual spelling that has one meaning and is read.
        kind: Name of the kind of problem.
        message: What is wrong, with the value.
        image_id: Id of the image as in the file; None if the finding is not about one.
        annotation_id: Id of the annotation, likewise.
    """

    level: Level
    kind: str
    message: str
    image_id: Any = None
    annotation_id: Any = None

    @property
    def where(self) -> str:
        """The entry, for a message: `annotation 7: `; empty if it is about the whole file."""
        if self.annotation_id is not None:
            return f"annotation {self.annotation_id}: "
        return "" if self.image_id is None else f"image {self.image_id}: "


class Findings:
    """Problems of a file, all counted.

    Args:
        keep: How many of each kind are kept as examples; None for all.

    Attributes:
        counts: Number of findings by level and kind.
    """

    def __init__(self, keep: int | None = 3) -> None:
        self.keep = keep
        self.counts: Counter[tuple[Level, str]] = Counter()
        self._kept: dict[tuple[Level, str], list[Finding]] = {}

    def __iter__(self) -> Iterator[Finding]:
        """The findings that are kept."""
        for kept in self._kept.values():
            yield from kept

    def add(
        self, level: Level, kind: str, message: str, image_id: Any = None, annotation_id: Any = None
    ) -> None:
        """Add a finding."""
        self.add_all(level, kind, [Finding(level, kind, message, image_id, annotation_id)], lambda one: one)

    def add_all(
        self, level: Level, kind: str, rows: Sequence[Any], describe: Callable[[Any], Finding]
    ) -> None:
        """Add a finding for each of `rows`; only those that are kept are described."""
        if len(rows):
            self.counts[level, kind] += len(rows)
            kept = self._kept.setdefault((level, kind), [])
            free = len(rows) if self.keep is None else max(0, self.keep - len(kept))
            kept.extend(describe(row) for row in rows[:free])

    def count(self, level: Level) -> int:
        """How many findings of this level there are."""
        return sum(number for (own, _), number in self.counts.items() if own == level)

    def first(self, level: Level, kind: str) -> Finding:
        """The first finding of a kind."""
        return self._kept[level, kind][0]

    def raise_errors(self, source: object, ignored: Sequence[str] = ()) -> None:
        """Raise a `YolactError` about the first error of the file `source`, unless its kind is `ignored`."""
        errors = {kind: n for (level, kind), n in self.counts.items() if level == "error"}
        kinds = [kind for kind in errors if kind not in ignored]
        if kinds:
            first = self.first("error", kinds[0])
            more = sum(errors[kind] for kind in kinds) - 1
            others = f" ({counted(more, 'more error')}: yolact-data check lists them)" if more else ""
            raise YolactError(f"{source}: {first.where}{first.message}{others}")

    def log(self, source: object, log: logging.Logger) -> None:
        """Log one line for each kind of warning and note."""
        for (level, kind), number in self.counts.items():
            if level != "error":
                first = self.first(level, kind)
                log.log(
                    logging.WARNING if level == "warning" else logging.INFO,
                    *("%s: %s: %d, the first: %s%s", source, kind, number, first.where, first.message),
                )
