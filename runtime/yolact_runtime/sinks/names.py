"""Names of the files written per image, and of the images in COCO files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from yolact_runtime.frames import Frame
from yolact_runtime.outputs import identity_of

# Bytes of a name that is made of the address of a source.
_MAX_STEM = 80


class FileNames:
    """The `file_name` of images and frames of videos: relative to the folder that all of them are in.

    So images of one folder have plain names, and those of several begin with what tells them apart.

    Args:
        folders: Real paths of the folders that are read from. None if they are not known: then names are
            relative to the folder of the first image.
        several: There are several sources, so that addresses of streams are needed as a whole.
        first: Returns the name of the first image, which is read even if it is damaged; None if unknown.
    """

    def __init__(
        self,
        folders: Collection[str] | None = (),
        several: bool = False,
        first: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._several = several
        self._first = first
        self._root = ""
        self._plain = folders is not None and len(folders) <= 1
        self._real = functools.lru_cache(maxsize=1024)(os.path.realpath)
        if folders and not self._plain:
            with contextlib.suppress(ValueError):  # they are on several drives of Windows
                self._root = os.path.commonpath(folders)

    def of(self, name: str) -> str:
        """The file name for the name of a frame; called in the order of the frames."""
        head, tail = os.path.split(name)
        if "://" in name:
            return name if self._several else tail
        if self._plain:
            return tail
        folder = self._real(head)
        self._root = self._root or self._real(os.path.split(self._first() or name)[0])
        try:
            return Path(os.path.relpath(folder, self._root), tail).as_posix()
        except ValueError:
            return Path(name).as_posix()


def file_stem(name: str) -> str:
    """A file name for a source: `rtsp_host_1` for `rtsp://host/1`."""
    stem = re.sub(r"[^\w.-]+", "_", name).strip("._") or "camera"
    if len(stem.encode()) <= _MAX_STEM:
        return stem
    short = stem.encode()[: _MAX_STEM - 9].decode(errors="ignore")
    return f"{short}_{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}"


def source_names(names: Iterable[str]) -> list[str]:
    """Names for the outputs of sources: as by `file_stem`; the second of one name ends in `_2`, and so on."""
    taken: set[str] = set()
    found = []
    for name in names:
        stem = free = file_stem(name)
        number = 2
        while free.casefold() in taken:
            free = f"{stem}_{number}"
            number += 1
        taken.add(free.casefold())
        found.append(free)
    return found


def no_source(path: Path) -> bool:
    """For sinks whose folder holds no source under another name."""
    return False


class FreeNames:
    """Names in a folder, each given once, that never overwrite a source.

    Args:
        folder: The folder.
        sources: Real paths of the folders that images are read from: if `folder` is one of them, no name of
            an existing file is given. None if they are not known; then no such name is given either.
        is_source: Whether an existing file is a source, perhaps under another name.
    """

    def __init__(
        self,
        folder: Path,
        sources: Collection[str] | None = (),
        is_source: Callable[[Path], bool] = no_source,
    ) -> None:
        self._folder = folder
        # Not by their paths: a file system may ignore the case of letters.
        self._careful = sources is None or identity_of(folder) in {identity_of(path) for path in sources}
        self._is_source = is_source
        # The last number given for each requested name; 1 for names that were given for another.
        self._numbers: dict[str, int] = {}
        self._before: dict[str, int | None] = {}

    def take(self, frame: Frame, suffix: str) -> Path:
        """A path for `frame`: `a.png`, or `a_2.png`, `a_3.png` and so on if that is taken."""
        return self._take(frame.path, frame.name, frame.time is not None, suffix)[0]

    def take_several(self, frame: Frame, endings: Sequence[str]) -> list[Path]:
        """Paths for several files of `frame`: `a` and each ending, or `a_2` and each and so on.

        Other frames get none of them if an ending can be told from the rest of a name by its underscores.
        """
        return self._take(frame.path, frame.name, frame.time is not None, "", endings)

    def carry(self, line: dict[str, Any], suffix: str, endings: Sequence[str] = ("",)) -> None:
        """Mark the name of an image of an earlier run as taken; `line` is from its JSON Lines, in order.

        Args:
            line: The line.
            suffix: As for `take`; "" for `take_several`.
            endings: As for `take_several`.
        """
        self._take(Path(line["image"]), line["image"], "time" in line, suffix, endings, carried=True)

    def give_back(self) -> None:
        """Free the name that was taken last, because nothing was written: a resumed run gives it again."""
        for key, number in self._before.items():
            if number is None:
                self._numbers.pop(key, None)
            else:
                self._numbers[key] = number

    def _take(
        self,
        path: Path,
        name: str,
        moving: bool,
        suffix: str,
        endings: Sequence[str] = ("",),
        carried: bool = False,
    ) -> list[Path]:
        """The first free name for `path`, with each ending; a frame of a video takes its stem from `name`.

        The files of one that is `carried` are there already.
        """
        stem = re.sub(r"[^\w.-]+", "_", PurePath(name).name) if moving else path.stem
        base = (stem + suffix).casefold()
        number = self._numbers.get(base, 0) + 1
        kept = self._is_source if carried else self._is_kept
        while True:
            free = f"{stem}{suffix}" if number == 1 else f"{stem}_{number}{suffix}"
            key = free.casefold()
            targets = [self._folder / (free + ending) for ending in endings]
            if (key == base or key not in self._numbers) and not any(map(kept, targets)):
                break
            number += 1
        self._before = {base: self._numbers.get(base), key: self._numbers.get(key)}
        self._numbers[base] = number
        self._numbers.setdefault(key, 1)
        return targets

    def _is_kept(self, path: Path) -> bool:
        return (self._careful and os.path.lexists(path)) or self._is_source(path)
