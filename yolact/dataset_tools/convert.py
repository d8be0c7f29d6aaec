"""Convert other annotation formats to COCO: labelme, Pascal VOC / SBD, mask images, YOLO text."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from yolact.data.layout import read_yaml, ultralytics_part, ultralytics_root
from yolact.dataset_tools.builder import CocoBuilder, Selection, Source
from yolact.dataset_tools.check import Progress
from yolact.dataset_tools.class_names import read_names
from yolact.dataset_tools.labelme import from_labelme
from yolact.dataset_tools.mask_images import from_masks, from_voc
from yolact.dataset_tools.yolo import from_yolo, labels_of
from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.files import is_file, is_folder, read_text
from yolact_runtime.typed import first_few
from yolact_runtime.untrusted import beyond, limit

log = logging.getLogger(__name__)

FORMATS: dict[str, Callable[[Source], CocoBuilder]] = {
    "labelme": from_labelme,
    "masks": from_masks,
    "voc": from_voc,
    "yolo": from_yolo,
}


class Conversion(NamedTuple):
    """What a conversion results in.

    Attributes:
        content: The content of a COCO annotation file.
        images: The folder that its file names are relative to.
        faults: One line for each file, line or shape that could not be converted; the rest is in `content`.
    """

    content: dict[str, Any]
    images: Path
    faults: list[str]


def convert(
    name: str,
    folder: str | Path,
    images: str | Path | None = None,
    names: str | Path | None = None,
    only: str | Path | None = None,
    progress: Progress = lambda items, total, text: items,
) -> Conversion:
    """Convert annotations to the content of a COCO annotation file.

    Args:
        name: The format, a key of `FORMATS`.
        folder: Folder of the annotations.
        images: Folder of the images, if it is not the format's usual one; file names are relative to it.
        names: File of the class names: one a line, or YAML with `names`.
        only: Text file of the images to convert, a name or path a line (such as Pascal VOC's
            `ImageSets/Segmentation/train.txt`, or YOLO's `train.txt`).
        progress: Wraps an iterable of a given length, with a text, to show how far it is.

    Raises:
        YolactError: nothing can be converted; names the file.
    """
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}; known: {', '.join(sorted(FORMATS))}")
    selection = _read_selection(Path(only)) if only else None
    source = Source(
        Path(folder),
        Path(images) if images else None,
        read_names(Path(names), first=0 if name == "yolo" else 1) if names else None,
        selection,
        progress,
    )
    for path in (source.folder, source.images):
        if path is not None and not is_folder(path):
            raise YolactError(f"folder {path} does not exist")
    builder = FORMATS[name](source)
    content = builder.content()
    if source.faults and not content["annotations"]:
        # Images alone would be trained on as background.
        raise YolactError(
            f"{folder}: nothing is converted, {counted(len(source.faults), 'fault')}: {source.faults[0]}"
        )
    if selection and (missing := selection.missing()):
        names_of = counted(len(missing), "name") + (" is" if len(missing) == 1 else " are")
        source.faults.append(f"{names_of} in {only}, but there is no such image: {first_few(missing)}")
    if not content["images"]:
        raise YolactError(f"{folder}: no images")
    if builder.tiny:
        log.warning("left out %s too small to cover a pixel", counted(builder.tiny, "outline"))
    if not content["annotations"]:
        log.warning("%s has no instances", folder)
    return Conversion(content, source.images or source.folder, source.faults)


def convert_yolo_dataset(
    path: Path, output: Path, progress: Progress = lambda items, total, text: items
) -> tuple[dict[str, Conversion], dict[str, Any]]:
    """Convert all parts of the YOLO dataset that Ultralytics' YAML file `path` describes.

    Args:
        path: The YAML file, with `train`, `val` and perhaps `test`: folders of images or lists of them.
        output: The folder that the result is for: the paths in the dataset file are relative to it.
        progress: As in `convert`.

    Returns:
        The conversion of each part, and the content of a YAML file for `--dataset`.

    Raises:
        YolactError: a part is missing or nothing in it can be converted.
    """
    content = read_yaml(path, "dataset")
    root = ultralytics_root(path, content) if isinstance(content, dict) else path.parent
    parts: dict[str, Conversion] = {}
    dataset: dict[str, Any] = {"name": path.stem}
    for part in ("train", "val", "test"):
        value = content.get(part) if isinstance(content, dict) else None
        place = ultralytics_part(root, value)
        if place is None:
            if value or part == "train":
                raise YolactError(f"dataset {path}: `{part}` is no path of one folder or one list of images")
            continue
        folder = is_folder(place)
        if not folder and not is_file(place):
            raise YolactError(f"dataset {path}: `{part}`: {place.absolute()} does not exist")
        images, only = (place, None) if folder else (_images_of_list(place), place)
        parts[part] = convert("yolo", labels_of(images), images, path, only, progress)
        if part != "test":
            dataset[part] = {
                "images": os.path.relpath(images, output),
                "annotations": f"annotations/instances_{part}.json",
            }
    return parts, dataset


def _images_of_list(path: Path) -> Path:
    """The folder that holds all images of a list; their paths are relative to the list's folder, or absolute.

    Raises:
        YolactError: none of them exists.
    """
    images = [path.parent.absolute() / line for line in _read_lines(path)]
    folders = {image.parent for image in images if is_file(image)}
    if not folders:
        raise YolactError(f"{path}: none of the {counted(len(images), 'image')} in it exists")
    return Path(os.path.commonpath(folders))


def _read_lines(path: Path) -> list[str]:
    """The lines of a list of images that are not empty.

    Raises:
        YolactError: it cannot be read, or a line is no name.
    """
    lines = [line.strip() for line in read_text(path, "list of images", "list_bytes").splitlines()]
    for number, line in enumerate(lines, start=1):
        if len(line) > limit("name"):
            raise YolactError(f"list {path}: line {number} has more characters than {beyond('name')}")
    return [line for line in lines if line]


def _read_selection(path: Path) -> Selection:
    """The images of a list; the -1, 0 or 1 after each name in Pascal VOC's lists of a class is left out.

    Raises:
        YolactError: unreadable or empty.
    """
    lines = _read_lines(path)
    if not lines:
        raise YolactError(f"list {path} is empty")
    flagged = [re.fullmatch(r"(\S+)\s+(?:-1|0|1)", line) for line in lines]
    return Selection([match[1] for match in flagged if match] if all(flagged) else lines)
