"""File names for what is written per image."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path, PurePath
from typing import Any

from yolact_runtime.frames import Frame


class FreeNames:
    """Names in a folder, none given twice and none that a source has.

    Args:
        folder: The folder.
        sources: Real paths of the folders that images are read from: if `folder` is one, no file that is
            there is given. None where they are not known: then none in `folder` is, in any case.
    """

    def __init__(self, folder: Path, sources: Collection[str] | None = ()) -> None:
        self._folder = folder
        self._careful = sources is None or os.path.realpath(folder) in sources
        # Of each name asked for the last number given; of a name given for another, 1.
        self._numbers: dict[str, int] = {}

    def take(self, frame: Frame, suffix: str) -> Path:
        """A path for `frame`: `a.png`, and if that is taken `a_2.png`, `a_3.png` and so on."""
        return self._take(frame.path, frame.name, frame.time is not None, suffix)

    def carry(self, line: dict[str, Any], suffix: str) -> None:
        """Give away the name of an image that an earlier run has finished.

        Args:
            line: Of its JSON Lines, in their order.
            suffix: As for `take`.
        """
        self._take(Path(line["image"]), line["image"], "time" in line, suffix)

    def _take(self, path: Path, name: str, moving: bool, suffix: str) -> Path:
        stem = re.sub(r"[^\w.-]+", "_", PurePath(name).name) if moving else path.stem
        base = (stem + suffix).casefold()
        number = self._numbers.get(base, 0) + 1
        while True:
            free = f"{stem}{suffix}" if number == 1 else f"{stem}_{number}{suffix}"
            key = free.casefold()
            target = self._folder / free
            if (key == base or key not in self._numbers) and not (self._careful and os.path.lexists(target)):
                break
            number += 1
        self._numbers[base] = number
        self._numbers.setdefault(key, 1)
        return target
