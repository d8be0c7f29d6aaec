"""The annotations of a file while they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from yolact.data.reader.findings import Finding, Findings, Level
from yolact.data.reader.values import shown

Entry = dict[str, Any]


class Rows:
    """Annotations while they are read, with their ids in the file, and where to report about them."""

    def __init__(self, entries: list[Entry], findings: Findings) -> None:
        self.entries, self.findings = entries, findings
        self.ids: list[Any] = [entry.get("id") for entry in entries]
        self._positions = list(range(len(entries)))

    def report_all(self, level: Level, kind: str, rows: Sequence[int], message: Callable[[int], str]) -> None:
        """Report a finding about each of `rows`."""

        def describe(row: int) -> Finding:
            name = self.ids[row]
            name = f"number {self._positions[row] + 1} of the file" if name is None else plain(name)
            return Finding(level, kind, message(row), plain(self.entries[row].get("image_id")), name)

        self.findings.add_all(level, kind, rows, describe)

    def report(self, level: Level, kind: str, row: int, message: str) -> None:
        """Report a finding about one row."""
        self.report_all(level, kind, [row], lambda row: message)

    def drop(self, rows: set[int]) -> np.ndarray:
        """Remove rows; returns the indices (n,) of those that stay."""
        kept = np.array([row for row in range(len(self.entries)) if row not in rows], np.int64)
        if rows:
            self.entries, self.ids, self._positions = (
                [values[row] for row in kept.tolist()] for values in (self.entries, self.ids, self._positions)
            )
        return kept


def plain(value: Any) -> int | str | None:
    """An id of the file for a finding: a short text in place of lists, long texts and the like."""
    return value if value is None or type(value) is int else str(value) if _is_word(value) else shown(value)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 100 and value.isprintable()
