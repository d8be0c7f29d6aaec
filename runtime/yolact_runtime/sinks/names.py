"""Names of the files written per image."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path, PurePath
from typing import Any

from yolact_runtime.frames import Frame


class FreeNames:
    """Names in a folder, each given once, that never overwrite a source.

    Args:
        folder: The folder.
        sources: Real paths of the folders that images are read from: if `folder` is one of them, no name of
            an existing file is given. None if they are not known; then no such name is given either.
    """

    def __init__(self, folder: Path, sources: Collection[str] | None = ()) -> None:
        self._folder = folder
        self._careful = sources is None or os.path.realpath(folder) in sources
        # The last number given for each requested name; 1 for names that were given for another.
        self._numbers: dict[str, int] = {}

    def take(self, frame: Frame, suffix: str) -> Path:
        """A path for `frame`: `a.png`, or `a_2.png`, `a_3.png` and so on if that is taken."""
        return self._take(frame.path, frame.name, frame.time is not None, suffix)

    def carry(self, line: dict[str, Any], suffix: str) -> None:
        """Mark the name of an image of an earlier run as taken; `line` is from its JSON Lines, in order."""
        self._take(Path(line["image"]), line["image"], "time" in line, suffix)

    def _take(self, path: Path, name: str, moving: bool, suffix: str) -> Path:
        """The first free name for `path`; a frame of a video takes its stem from `name`."""
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
