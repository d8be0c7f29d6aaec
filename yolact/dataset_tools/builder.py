"""What converters share: their source, and a builder of COCO annotation files."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from yolact.data.reader.image_files import decoded_size
from yolact.data.segmentation import runs_to_rle, to_rle
from yolact.dataset_tools.check import Progress
from yolact_runtime.errors import YolactError
from yolact_runtime.files import is_folder
from yolact_runtime.sources.folders import IMAGES
from yolact_runtime.sources.headers import read_header, size_fault
from yolact_runtime.sources.structure import examine
from yolact_runtime.typed import first_few, nearest
from yolact_runtime.untrusted import beyond, limit, read_bytes


class Selection:
    """The images of a list, such as Pascal VOC's `train.txt` or YOLO's: names or paths, with suffix or not.

    A name of the list and an image match if they are equal as far as both have folders.

    Args:
        names: The lines of the list.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {_parts(name): name for name in names}
        self._tails = {tail: parts for parts in self._names for tail in _tails(parts)}
        self._found: set[tuple[str, ...]] = set()

    def __contains__(self, name: str) -> bool:
        parts = _parts(name)
        found = [tail for tail in _tails(parts) if tail in self._names]
        if parts in self._tails:
            found.append(self._tails[parts])
        self._found.update(found)
        return bool(found)

    def missing(self) -> list[str]:
        """The names for which no image was asked yet."""
        return [name for parts, name in self._names.items() if parts not in self._found]


def _parts(name: str) -> tuple[str, ...]:
    """Folders and name of a path, without the suffix of an image or annotation file."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.suffix.lower() in (*IMAGES, ".txt", ".json", ".xml"):
        path = path.with_suffix("")
    return tuple(part for part in path.parts if part not in ("/", ".."))


def _tails(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (parts[first:] for first in range(len(parts)))


@dataclass
class Source:
    """What to convert, and what could not be converted.

    Attributes:
        folder: Folder of the annotations.
        images: Folder of the images, if it is not the format's usual one.
        names: Class names by category id; None to take them from the annotations.
        only: The images to convert; None for all.
        progress: Wraps an iterable of a given length, with a text, to show how far it is.
        faults: One line for each file, line or shape that could not be converted.
    """

    folder: Path
    images: Path | None = None
    names: Mapping[int, str] | None = None
    only: Selection | None = None
    progress: Progress = lambda items, total, text: items
    faults: list[str] = field(default_factory=list)

    def wants(self, name: str) -> bool:
        """Whether to convert the image of this name (folders, and name without suffix)."""
        return self.only is None or name in self.only

    def image_files(self, usual: Path) -> dict[str, Path]:
        """The images to convert by name (folders, and name without suffix), sorted, also those in subfolders.

        Images of the same name are faults.

        Args:
            usual: The format's folder of images.

        Raises:
            YolactError: no folder, or no images in it.
        """
        self.images = folder = self.images or usual
        if not is_folder(folder):
            raise YolactError(f"no image folder {folder}; give it with --images")
        found: dict[str, list[Path]] = {}
        for path in files_below(folder, IMAGES):
            found.setdefault(key_of(path, folder), []).append(path)
        if not found:
            raise YolactError(f"image folder {folder} holds no image; known suffixes: {', '.join(IMAGES)}")
        single = {}
        for key, paths in found.items():
            if not self.wants(key):
                continue
            if len(paths) > 1:
                names = " and ".join(path.name for path in paths)
                self.faults.append(f"{paths[0].parent}: {names} have the same name; rename one of them")
            else:
                single[key] = paths[0]
        if not single and self.only and (missing := self.only.missing()):
            raise YolactError(f"none of the images in the list is in {folder}: {first_few(missing)}")
        return single

    def measured(self, paths: Iterable[Path]) -> Iterator[tuple[Path, tuple[int, int]]]:
        """Each image with its height and width, in order; those that cannot be read are faults."""
        paths = list(paths)
        pool = ThreadPoolExecutor()
        try:
            sizes = self.progress(pool.map(_height_and_width, paths), len(paths), "reading images")
            for path, size in zip(paths, sizes, strict=True):
                if isinstance(size, YolactError):
                    self.faults.append(str(size))
                else:
                    yield path, size
        finally:
            pool.shutdown(cancel_futures=True)


def _height_and_width(path: Path) -> tuple[int, int] | YolactError:
    try:
        return decoded_size(path)
    except YolactError as error:
        return error


def files_below(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files with one of the suffixes, in capitals or not, sorted; without hidden files and folders.

    Raises:
        YolactError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # removed by now
            raise YolactError(f"cannot read folder {error.filename}: {error.strerror or error}") from error

    wanted, seen, found = tuple(suffixes), set(), []
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        # Links may lead back to a folder above.
        real = os.path.realpath(root)
        folders[:] = sorted(name for name in folders if name[0] != "." and real not in seen)
        if real not in seen:
            found += [Path(root, name) for name in names if name.lower().endswith(wanted) and name[0] != "."]
        seen.add(real)
    return sorted(found)


def key_of(path: Path, folder: Path) -> str:
    """The name of a file below `folder`, without suffix and with `/` between folders."""
    return path.relative_to(folder).with_suffix("").as_posix()


def read_plane(path: Path) -> np.ndarray:
    """Read an image file with all that it holds: depth, colours and alpha.

    Returns:
        (H, W) or (H, W, 3 or 4) BGRA of any type.

    Raises:
        YolactError: it cannot be read, is too large, or is no image.
    """
    try:
        return decode(read_bytes(path, "mask"))
    except ValueError as error:
        raise YolactError(f"{path} {error}") from error


def decode(data: bytes) -> np.ndarray:
    """Same as `read_plane`, from the bytes of a file; raises a ValueError that goes on after its name."""
    first = first_picture(data)
    try:
        values = cv2.imdecode(np.frombuffer(first, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        values = None
    if values is None:
        raise ValueError("is not an image")
    return values


def first_picture(data: bytes) -> bytes:
    """What to decode of an image file.

    Raises:
        ValueError: it is cut off, its size is not known, or decoding it takes more memory than allowed.
    """
    structure = examine(data)
    if structure.cut_off or structure.misread:
        raise ValueError(structure.misread or "is cut off")
    header = read_header(structure.data)
    if header is None or not header.width:
        raise ValueError("is not an image, or of a format whose size is not known before it is decoded")
    # With an alpha channel, which `read_image` leaves out.
    if fault := size_fault(header[:2], len(data) + header.memory * 4 // 3):
        raise ValueError(fault)
    return structure.data


def binary_mask(values: np.ndarray) -> np.ndarray:
    """The mask (H, W) bool that an image of one instance shows: what is above half of the brightest.

    An alpha channel with opaque and transparent pixels is the mask, whatever the colours below it.
    """
    if values.ndim == 3 and values.shape[2] == 4:
        alpha = values[:, :, 3]
        values = alpha if alpha.min() < alpha.max() / 2 else values[:, :, :3]
    if values.ndim == 3:
        values = values.max(axis=2)
    return values > values.max() / 2


def is_plain(text: Any) -> TypeGuard[str]:
    """Whether a value is text with something in it, and without control characters and lone surrogates."""
    return isinstance(text, str) and text != "" and not {"Cc", "Cs"} & set(map(unicodedata.category, text))


def clean_label(label: Any) -> str:
    """A class name on one line, without blanks around it.

    Raises:
        ValueError: it is not text, or empty.
    """
    if not isinstance(label, str):
        raise ValueError(f"the label is {str(label)[:40]}, not text" if label is not None else "no label")
    if len(label) > limit("name"):
        raise ValueError(f"the label has {len(label):,} characters, more than {beyond('name')}")
    text = " ".join(label.split())
    if not is_plain(text):
        raise ValueError(f"the label {label[:40]!a} is empty or has control characters")
    return text


class CocoBuilder:
    """Collects images and instances, with ids from 1.

    `tiny` counts the polygons that were left out because they lie between the centres of pixels.
    """

    def __init__(self, names: Mapping[int, str] | None = None) -> None:
        self.tiny = 0
        self._names = names
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._labels: list[str] = []

    def add_image(self, file_name: str, height: int, width: int) -> None:
        """Add an image; the instances added next are in it."""
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": file_name, "height": height, "width": width})

    def add_polygons(self, label: str, polygons: list[list[float]]) -> None:
        """Add an instance, from flat x, y lists in pixels.

        Raises:
            ValueError: not polygons, no pixel of the image in them, or an unknown class.
        """
        height, width = self._size()
        area = int(coco_mask.area(to_rle(polygons, height, width)))
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        low, high = points.min(0), points.max(0)
        if not area:
            if (low > -1).all() and (high < (width + 1, height + 1)).all() and (high - low).min() < 1:
                self._check(label)
                self.tiny += 1
                return
            (x1, y1), (x2, y2) = low, high
            raise ValueError(
                f"covers no pixel of the image: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}, in {width} x {height}"
            )
        low, high = low.clip(0, (width, height)), high.clip(0, (width, height))
        self._add(label, polygons, area, [*low.tolist(), *(high - low).tolist()])

    def add_mask(self, label: str, mask: np.ndarray, crowd: bool = False) -> None:
        """Add an instance or crowd region from its mask (height, width) bool.

        Raises:
            ValueError: the mask is empty or the class unknown.
        """
        if not mask.any():
            raise ValueError("covers no pixel of the image")
        self._add_rle(label, coco_mask.encode(np.asfortranarray(mask, np.uint8)), crowd)

    def add_pixels(self, label: str, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Add an instance from its runs of pixels.

        Args:
            label: Its class.
            starts: (n,) first pixel of each run, counted down the columns of the last image; ascending.
            lengths: (n,) pixels of each run.

        Raises:
            ValueError: there are none, or the class is unknown.
        """
        if not lengths.any():
            raise ValueError("covers no pixel of the image")
        height, width = self._size()
        ends = starts + lengths
        apart = starts[1:] != ends[:-1]  # runs that continue in the next column are one
        edges = np.stack([starts[np.append(True, apart)], ends[np.append(apart, True)]], axis=1).ravel()
        runs = np.diff(edges, prepend=0, append=height * width)
        self._add_rle(label, runs_to_rle(runs[: -1 if runs[-1] == 0 else None], height, width))

    def _add_rle(self, label: str, rle: dict[str, Any], crowd: bool = False) -> None:
        segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
        self._add(label, segmentation, int(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist(), crowd)

    def add_box(self, label: str, box: np.ndarray) -> None:
        """Add an object without a mask, from x1 y1 x2 y2 in pixels.

        Raises:
            ValueError: the box is empty or the class unknown.
        """
        height, width = self._size()
        x1, y1, x2, y2 = np.clip(box, 0, (width, height, width, height)).tolist()
        if x1 >= x2 or y1 >= y2:
            raise ValueError("covers no pixel of the image")
        self._add(label, [], (x2 - x1) * (y2 - y1), [x1, y1, x2 - x1, y2 - y1])

    def content(self) -> dict[str, Any]:
        """The content of the annotation file. Classes not given at the start are numbered from 1, by name."""
        names = self._names or dict(enumerate(sorted(set(self._labels)), start=1))
        numbers = {name: number for number, name in names.items()}
        return {
            "images": self._images,
            "annotations": [
                {**annotation, "category_id": numbers[label]}
                for annotation, label in zip(self._annotations, self._labels, strict=True)
            ],
            "categories": [{"id": number, "name": name} for number, name in sorted(names.items())],
        }

    def _size(self) -> tuple[int, int]:
        """Height and width of the last image."""
        return self._images[-1]["height"], self._images[-1]["width"]

    def _check(self, label: str) -> None:
        if self._names is not None and label not in self._names.values():
            raise ValueError(f"no class {label!r}; {nearest(label, self._names.values())}")

    def _add(
        self, label: str, segmentation: Any, area: float, bbox: list[float], crowd: bool = False
    ) -> None:
        """Append an annotation of the last image."""
        self._check(label)
        self._labels.append(label)
        self._annotations.append(
            {
                "id": len(self._annotations) + 1,
                "image_id": len(self._images),
                "segmentation": segmentation,
                "area": area,
                "bbox": bbox,
                "iscrowd": int(crowd),
            }
        )
