"""The files of the images that an annotation file lists: found by name, and their sizes compared."""

from __future__ import annotations

import os
import random
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from yolact.data.reader.findings import Findings
from yolact_runtime.errors import YolactError
from yolact_runtime.files import is_file, is_folder
from yolact_runtime.sources.images import read_image

# How many images are looked at before the work; the others are compared when they are read.
SAMPLE = 5000
_THREADS = 16
_ORIENTATION = 0x112  # the EXIF tag


class ImageFolder:
    """Finds image files by the names in an annotation file. The folders are listed once.

    Args:
        root: Folder that the names are relative to.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._names: dict[Path, set[str]] = {}
        self._spellings: dict[Path, dict[str, list[str]]] = {}

    def find(self, file_name: str) -> Path:
        """The path of an image; where it was looked for first, if it does not exist.

        A name may also be spelled with backslashes, `%20`, another Unicode form or another case, if one
        file only is meant. If there is no such file, its folders are left out, and then COCO 2014's prefix:
        `val2014/COCO_val2014_000000000042.jpg`, `COCO_val2014_000000000042.jpg`, `000000000042.jpg`.
        """
        if file_name in self._list(self.root):
            return self.root / file_name
        spellings = list(dict.fromkeys([file_name, file_name.replace("\\", "/"), unquote(file_name)]))
        spellings.append(unquote(spellings[-1].replace("\\", "/")))
        for shorten in (str, _base_name, _without_prefix):
            for name in dict.fromkeys(map(shorten, spellings)):
                path = self._existing(self.root / name)
                if path is not None:
                    return path
        return self.root / spellings[min(1, len(spellings) - 1)]

    def _existing(self, path: Path) -> Path | None:
        """The file at `path`, up to case and Unicode form; None if there is none, or if it is ambiguous."""
        try:
            names = self._list(path.parent)
        except YolactError:
            return None
        if path.name in names:
            return path
        if path.parent not in self._spellings:
            spellings = self._spellings[path.parent] = {}
            for name in sorted(names):
                spellings.setdefault(_key(name), []).append(name)
        found = self._spellings[path.parent].get(_key(path.name), [])
        return path.with_name(found[0]) if len(found) == 1 else None

    def _list(self, folder: Path) -> set[str]:
        """The names in a folder; empty if there is no such folder."""
        if folder not in self._names:
            try:
                # Names alone take a fifth of the time of Path.iterdir.
                self._names[folder] = set(os.listdir(folder)) if is_folder(folder) else set()  # noqa: PTH208
            except OSError as error:
                raise YolactError(f"cannot read folder {folder}: {error.strerror or error}") from error
        return self._names[folder]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _base_name(name: str) -> str:
    return name.rpartition("/")[2] or name


def _without_prefix(name: str) -> str:
    name = _base_name(name)
    return name.rpartition("_")[2] if name.startswith("COCO_") else name


def find_images(
    images: Iterable[Mapping[str, Any]], folder: str | Path, findings: Findings
) -> dict[int, Path]:
    """The path of each image by id, whether or not it exists; two entries with one file are an error.

    Args:
        images: Entries of an `AnnotationFile`.
        folder: Folder of the images.
        findings: Where to report.
    """
    finder = ImageFolder(folder)
    paths: dict[int, Path] = {}
    owners: dict[Path, tuple[int, str]] = {}
    for image in images:
        number, name = image["id"], image["file_name"]
        path = paths[number] = finder.find(name)
        other = owners.setdefault(path, (number, name))
        if other[1] != name:
            message = f"{name} and {other[1]} (image {other[0]}) are both read from {path}"
            findings.add("error", "two entries, one file", message, number)
    return paths


def exif_orientation(path: Path) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 if it has none."""
    header = _header(path)
    return header[2] if header else 1


def header_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of an image in its EXIF orientation, from its header; None if that cannot be read."""
    header = _header(path)
    if header is None:
        return None
    width, height, orientation = header
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def _header(path: Path) -> tuple[int, int, int] | None:
    """Width, height and EXIF orientation (1 if there is none) of an image; None if they cannot be read."""
    from PIL import Image

    if not is_file(path):  # opening a pipe would wait for its writer
        return None
    try:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged and large images
        with Image.open(path) as image:
            return *image.size, int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises whatever a damaged header causes; the decoder says what is wrong
        return None


def decoded_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image, which is decoded whole: damaged ones are noticed.

    Raises:
        YolactError: it cannot be read.
    """
    height, width = read_image(path).shape[:2]
    return height, width


def size_problem(image: Mapping[str, Any], height: int, width: int) -> str | None:
    """What is wrong if an image is `height` x `width`; None if its entry says the same or nothing."""
    declared = image["height"], image["width"]
    if None in declared or declared == (height, width):
        return None
    text = (
        f"{image['file_name']} is {width}x{height} pixels, but the annotation file says"
        f" {declared[1]}x{declared[0]}"
    )
    if declared == (width, height):
        text += " (rotated: annotated without its EXIF orientation?)"
    return text


def check_sizes(
    images: Sequence[Mapping[str, Any]], paths: Mapping[int, Path], findings: Findings, sample: int = SAMPLE
) -> None:
    """Compare the sizes in the file with those of a sample of the images; differences are errors.

    Only headers are read, and an image is decoded if its header says another size than the file. Images that
    cannot be read are left to who reads them.

    Args:
        images: Entries of an `AnnotationFile`.
        paths: Result of `find_images`.
        findings: Where to report.
        sample: How many images are looked at; they are the same every time.
    """
    known = [image for image in images if image["height"]]
    if len(known) > sample:
        known = random.Random(0).sample(known, sample)

    def compare(image: Mapping[str, Any]) -> str | None:
        path = paths[image["id"]]
        size = header_size(path)
        if size is None or size_problem(image, *size) is None:
            return None
        try:
            height, width = decoded_size(path)
        except YolactError:
            return None
        return size_problem(image, height, width)

    with ThreadPoolExecutor(_THREADS) as pool:
        for image, problem in zip(known, pool.map(compare, known), strict=True):
            if problem:
                findings.add("error", "wrong image size", problem, image["id"])
