"""Which files of a folder or pattern are images or videos; folders that cannot be read are reported."""

# Paths are text here: `Path` takes five times the memory, and raises errors where os.path does not.
# ruff: noqa: PTH110, PTH114, PTH116, PTH118, PTH119, PTH122

from __future__ import annotations

import collections
import fnmatch
import glob
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.sources.heif import reads_heif

_HEIF = {".avif": "AVIF", ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC"}
IMAGES = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jfif", ".jp2", ".jpe",
    ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
VIDEOS = (
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
# Images that are not read: camera raw files, float values, layers, vectors, and others without a decoder.
OTHER_IMAGES = (
    ".arw", ".avifs", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heics", ".heifs", ".icns",
    ".ico", ".jxl", ".jxr", ".nef", ".nrw", ".orf", ".pam", ".pcx", ".pef", ".pfm", ".psd", ".raf", ".raw",
    ".rw2", ".sr2", ".srw", ".svg", ".tga", ".wmf", ".xcf",
)  # fmt: skip
OnError = Callable[[str, YolactError], object]  # takes the folder as well

log = logging.getLogger(__name__)


def raise_error(folder: str, error: YolactError) -> NoReturn:
    """Raise the error of a folder that cannot be read."""
    raise error


def suffix_of(name: str) -> str:
    """The suffix in lower case, such as `.jpg`."""
    return os.path.splitext(name)[1].lower()


def is_pattern(name: str) -> bool:
    """Whether `name` is a pattern such as `photos/*.jpg`, and not a file or address."""
    return glob.has_magic(name) and not os.path.lexists(name) and "://" not in name


def images_in(source: str, names: Iterable[str], whole: bool = True) -> list[str]:
    """The images among the files of `source`, a folder or pattern.

    One warning counts the files that are images or videos by their suffix and are not read.

    Args:
        source: For messages.
        names: Its files.
        whole: All of it was searched, so it is an error if it has no image.

    Raises:
        UsageError: there is no image.
    """
    images: list[str] = []
    left_out: collections.Counter[str] = collections.Counter()
    for name in names:
        suffix = suffix_of(name)
        if suffix in IMAGES and (suffix not in _HEIF or reads_heif(_HEIF[suffix])):
            images.append(name)
        elif suffix in IMAGES or suffix in VIDEOS or suffix in OTHER_IMAGES:
            left_out[suffix] += 1
    skipped = _count_skipped(left_out)
    if not images and whole:
        what = f"pattern {source} matches" if is_pattern(source) else f"folder {source} holds"
        reason = skipped or f"known suffixes are {', '.join(IMAGES)}"
        raise UsageError(f"{what} no image; {reason}")
    if skipped:
        log.warning("%s: %s", source, skipped)
    return images


def _count_skipped(counts: collections.Counter[str]) -> str:
    """`12 files skipped: 10 .heic, 2 .mp4`, and how to read them; empty for no files."""
    if not counts:
        return ""
    kinds = ", ".join(f"{number} {suffix}" for suffix, number in counts.most_common())
    text = f"{counted(sum(counts.values()), 'file')} skipped: {kinds}"
    if any(suffix in _HEIF for suffix in counts):
        text += '; for HEIC and AVIF, run: pip install "yolact[heif]"'
    if any(suffix in VIDEOS for suffix in counts):
        text += "; videos in folders are read if a pattern or their name is given"
    return text


def scan(folder: str, onerror: OnError = raise_error) -> list[str]:
    """The files of a folder, sorted by name, without those of its subfolders."""
    folder = "" if (path := str(Path(folder))) == os.curdir else path
    return sorted(path for path, entry in _entries(folder, onerror, named=True) if _may_be_file(path, entry))


def match(pattern: str, onerror: OnError = raise_error) -> list[str]:
    """The files that a pattern matches, sorted by name.

    Python's `glob` ignores folders that cannot be read, and follows links in circles.

    Args:
        pattern: `*`, `?`, `[...]`, and `**` for a folder and all folders below it. A name that begins with
            a dot is matched only by a dot. `**` follows a link to a folder unless that was searched already,
            or contains the folder where the search began.
        onerror: Called for each folder that cannot be read; the others are searched.
    """
    reported: set[str] = set()

    def report(folder: str, error: YolactError) -> None:
        if folder not in reported:  # `**` reads folders twice
            reported.add(folder)
            onerror(folder, error)

    drive, rest = os.path.splitdrive(pattern)
    separators = (os.sep, os.altsep or os.sep)
    root = drive + (os.sep if rest.startswith(separators) else "")
    split = re.split("|".join(map(re.escape, separators)), rest)
    *parts, last = [part for part in split if part not in ("", ".")] or [""]
    if rest.endswith(separators):
        return []  # it matches folders
    if last == "**":
        parts, last = [*parts, "**"], "*"
    folders: Iterable[str] = [root]
    for part, before in zip(parts, ["", *parts], strict=False):
        if not part == before == "**":
            folders = dict.fromkeys(_below(folders, part, report))
    if not glob.has_magic(last):
        return sorted({path for path in (os.path.join(f, last) for f in folders) if _may_be_file(path)})
    return sorted(
        {path for f in folders for path, entry in _entries(f, report, last) if _may_be_file(path, entry)}
    )


def _below(folders: Iterable[str], part: str, onerror: OnError) -> Iterator[str]:
    """The folders that one component of a pattern stands for in each of `folders`."""
    for folder in folders:
        if part == "**":
            yield from _walk(folder, onerror)
        elif glob.has_magic(part):
            yield from (path for path, entry in _entries(folder, onerror, part) if _is_folder(entry))
        else:
            yield os.path.join(folder, part)


def _walk(top: str, onerror: OnError) -> Iterator[str]:
    """A folder and all folders below it, each once; links are followed after all else."""
    real_top = os.path.realpath(top or os.curdir)
    seen = set[str]()
    folders, links = [top], list[str]()
    while folders or links:
        folder = (folders or links).pop()
        real = os.path.realpath(folder or os.curdir)
        above = os.path.join(real_top, "").startswith(os.path.join(real, ""))
        if real in seen or (above and folder != top):
            continue
        seen.add(real)
        yield folder
        for path, entry in _entries(folder, onerror, "*"):
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)


def _entries(
    folder: str, onerror: OnError, pattern: str = "", named: bool = False
) -> list[tuple[str, os.DirEntry[str]]]:
    """Path and entry of what a folder holds.

    Args:
        folder: Empty for the current one.
        onerror: Called if it cannot be read.
        pattern: Only these names; as in the shell, a name that begins with a dot must be given so.
        named: It is an error if there is no such folder.
    """
    fits = re.compile(fnmatch.translate(os.path.normcase(pattern))).match if pattern else None
    try:
        with os.scandir(folder or os.curdir) as entries:
            return [
                (os.path.join(folder, entry.name), entry)
                for entry in entries
                if fits is None
                or (fits(os.path.normcase(entry.name)) and (pattern[0] == "." or entry.name[0] != "."))
            ]
    except OSError as error:
        if named or not isinstance(error, FileNotFoundError | NotADirectoryError):
            name = folder or os.curdir
            onerror(name, YolactError(f"cannot read folder {name}: {error.strerror or error}"))
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except PermissionError:  # of what a link leads to: searching it reports the error
        return True
    except OSError:
        return False


def _may_be_file(path: str, entry: os.DirEntry[str] | None = None) -> bool:
    """Whether to read a path: a file, or what may have been meant as one, whose error reading it reports."""
    # macOS writes "._name.jpg" files, which are not images, to shared drives.
    if os.path.basename(path).startswith("._"):
        return False
    try:
        if entry.is_file() if entry else stat.S_ISREG(os.stat(path).st_mode):
            return True
        return entry is not None and entry.is_symlink() and not os.path.exists(path)
    except (FileNotFoundError, NotADirectoryError):
        return os.path.islink(path)
    except OSError:
        return True
