"""Convert other annotation formats to COCO: labelme, Pascal VOC / SBD, mask images, YOLO text."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolact.dataset_tools.builder import CocoBuilder, Source
from yolact.dataset_tools.labelme import from_labelme
from yolact.registry import published_classes
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.sources.images import read_image

log = logging.getLogger(__name__)

# Value of the pixels that Pascal's annotators left undecided, at the borders of objects.
_VOC_VOID = 255


def convert(
    name: str,
    folder: str | Path,
    images: str | Path | None = None,
    names: str | Path | None = None,
    only: str | Path | None = None,
) -> dict[str, Any]:
    """Convert annotations to the content of a COCO annotation file.

    Args:
        name: The format, a key of `FORMATS`.
        folder: Folder of the annotations.
        images: Folder of the images, if it is not the format's usual one; file names are relative to it.
        names: File of the class names: one a line, or YAML with `names`.
        only: Text file of the images to convert, one name without suffix a line (such as Pascal VOC's
            `ImageSets/Segmentation/train.txt`).

    Raises:
        YolactError: something cannot be converted; names the file.
    """
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}; known: {', '.join(sorted(FORMATS))}")
    source = Source(
        Path(folder),
        Path(images) if images else None,
        _read_names(Path(names), first=0 if name == "yolo" else 1) if names else None,
        frozenset(line.split()[0] for line in _lines(Path(only))) if only else None,
    )
    for path in (source.folder, source.images):
        if path is not None and not path.is_dir():
            raise YolactError(f"folder {path} does not exist")
    content = FORMATS[name](source)
    if not content["images"]:
        raise YolactError(
            f"{folder}: none of the images listed in {only} exists" if only else f"{folder}: no images"
        )
    if not content["annotations"]:
        log.warning("%s has no instances", folder)
    return content


def from_voc(source: Source) -> dict[str, Any]:
    """Convert Pascal VOC's layout, which is also that of SBD ("semantic boundaries") as PNG files.

    `SegmentationObject/*.png` hold the numbers of instances, `SegmentationClass/*.png` those of classes; the
    images are in `JPEGImages/`. Void pixels belong to no instance. An instance has the class of most of its
    pixels.
    """
    objects, classes = (source.folder / name for name in ("SegmentationObject", "SegmentationClass"))
    for folder in (objects, classes):
        if not folder.is_dir():
            hint = "; convert SBD's .mat files to PNG first" if any(source.folder.rglob("*.mat")) else ""
            raise YolactError(f"{source.folder} has no folder {folder.name}/{hint}")
    pascal = published_classes("pascal_sbd")
    names = source.names or dict(zip(pascal.category_ids, pascal.names, strict=True))
    builder = CocoBuilder(names)
    images = source.image_files(source.folder / "JPEGImages")
    for path in sorted(objects.glob("*.png")):
        if not source.wants(path.stem):
            continue
        if path.stem not in images:
            raise YolactError(f"{path} has no image in {source.images or source.folder / 'JPEGImages'}")
        instances, kinds = _indices(path), _indices(classes / path.name)
        if instances.shape != kinds.shape:
            raise YolactError(
                f"{path} is {instances.shape}, its class image is {kinds.shape} (height, width)"
            )
        builder.add_image(images[path.stem].name, *instances.shape)
        for number in np.unique(instances[(instances != 0) & (instances != _VOC_VOID)]).tolist():
            mask = instances == number
            votes = np.bincount(kinds[mask], minlength=256)
            votes[[0, _VOC_VOID]] = 0
            label = int(votes.argmax())
            if not votes[label] or label not in names:
                raise YolactError(f"{classes / path.name}: no known class at instance {number} of {path}")
            builder.add_mask(names[label], mask)
    return builder.content()


def from_masks(source: Source) -> dict[str, Any]:
    """Convert mask images, one for each instance, in a folder for each image.

    `SOURCE/<image name>/<class>_<number>.png`, or `<class>.png`. Pixels above half of the brightest belong to
    the instance. Images without a folder have no instances.
    """
    if source.images is None:
        raise UsageError("mask images: give the folder of the images with --images")
    builder = CocoBuilder(source.names)
    images = source.image_files(source.images)
    for folder in sorted(source.folder.iterdir()):
        if folder.is_dir() and source.wants(folder.name) and folder.name not in images:
            raise YolactError(f"{folder} has no image of its name in {source.images}")
    for stem, path in images.items():
        height, width = read_image(path).shape[:2]
        builder.add_image(path.name, height, width)
        for file in sorted((source.folder / stem).glob("*.png")):
            mask = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
            if mask is None or mask.shape != (height, width):
                found = "not an image" if mask is None else f"{mask.shape[1]}x{mask.shape[0]}"
                raise YolactError(f"{file} is {found}; {path} is {width}x{height}")
            if not mask.any():
                log.warning("%s is empty and is skipped", file)
            builder.add_mask(re.sub(r"[_-]\d+$", "", file.stem), mask > mask.max() // 2)
    return builder.content()


def from_yolo(source: Source) -> dict[str, Any]:
    """Convert YOLO's segmentation text: a file for each image, a line `class x y x y ..` for each instance.

    Coordinates are relative to the image. Class numbers, from 0, become category ids. Images without a file
    have no instances; without a given folder they are in `images` in place of `labels`.
    """
    names = source.names or _yolo_names(source.folder)
    parts = ["images" if part == "labels" else part for part in source.folder.parts]
    images = source.image_files(Path(*parts))
    builder = CocoBuilder(names)
    for path in sorted(source.folder.glob("*.txt")):
        if source.wants(path.stem) and path.stem not in images and path.name != "classes.txt":
            log.warning("%s has no image and is skipped", path)
    for stem, image in images.items():
        height, width = read_image(image).shape[:2]
        builder.add_image(image.name, height, width)
        path = source.folder / f"{stem}.txt"
        for number, line in enumerate(_lines(path) if path.exists() else [], start=1):
            try:
                label, *values = line.split()
                if len(values) == 4:
                    raise ValueError("a box; expected a polygon, as in YOLO's segmentation format")
                if len(values) < 6 or len(values) % 2:
                    raise ValueError(f"{len(values)} coordinates; a polygon needs at least three points")
                if int(label) not in names:
                    raise ValueError(f"class {label}; there are names for {', '.join(map(str, names))}")
                points = np.array(values, np.float64).reshape(-1, 2) * (width, height)
                builder.add_polygons(names[int(label)], [points.reshape(-1).tolist()])
            except ValueError as error:
                raise YolactError(f"{path}, line {number}: {error}") from None
    return builder.content()


FORMATS: dict[str, Callable[[Source], dict[str, Any]]] = {
    "labelme": from_labelme,
    "masks": from_masks,
    "voc": from_voc,
    "yolo": from_yolo,
}


def _indices(path: Path) -> np.ndarray:
    """The values (H, W) of a palette or grey PNG; OpenCV would return the palette's colours."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            values = np.array(image)
    except OSError as error:
        raise YolactError(f"cannot read {path}: {error}") from error
    if values.ndim != 2:
        raise YolactError(f"{path} holds colours; expected palette or grey values")
    return values


def _lines(path: Path) -> list[str]:
    """The non-empty lines of a text file."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise YolactError(f"cannot read {path}: {error}") from error


def _read_names(path: Path, first: int) -> dict[int, str]:
    """Class names by category id: a text file (numbered from `first`), or a YAML file's `names`."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        names: Any = _lines(path)
    else:
        import yaml

        try:
            content = yaml.safe_load("\n".join(_lines(path)))
        except yaml.YAMLError as error:
            raise YolactError(f"cannot read {path}: {' '.join(str(error).split())}") from error
        names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names, start=first))
    if not isinstance(names, dict) or not names or not all(type(number) is int for number in names):
        raise YolactError(f"{path} holds no class names: one a line, or YAML with a list `names`")
    texts = {number: str(name) for number, name in names.items()}
    if len(set(texts.values())) != len(texts):
        raise YolactError(f"{path} has the same class name twice")
    return texts


def _yolo_names(folder: Path) -> dict[int, str]:
    """The class names in a file near YOLO's text files."""
    for near in (folder, *folder.resolve().parents[:2]):
        for name in ("data.yaml", "data.yml", "dataset.yaml", "classes.txt"):
            if (near / name).is_file():
                return _read_names(near / name, first=0)
    raise YolactError(f"{folder}: no data.yaml or classes.txt near it; give the class names with --names")
