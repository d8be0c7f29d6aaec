"""Find the images and annotation files of a dataset: a YAML file, or a folder in a common layout."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from yolact.config import DatasetConfig
from yolact.data.reader.image_files import ImageFolder
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import is_file, is_folder, read_text
from yolact_runtime.sources.folders import IMAGES
from yolact_runtime.untrusted import limit, parse_yaml

log = logging.getLogger(__name__)

# Annotation files, the best pattern first.
_ANNOTATIONS = (
    "annotations/instances_{split}*.json",
    "annotations/{split}*.json",
    "annotations/*_{split}*.json",
    "instances_{split}*.json",
    "*_{split}.json",
    "{split}*.json",
    "{split}*/_annotations.coco.json",
    "{split}*/annotations*.json",
    "{split}*/labels.json",
    "{split}*/coco.json",
)
# Files of tools that export one part without a name: CVAT, Roboflow, FiftyOne, Label Studio.
_ONE_PART = (
    "annotations/instances_default.json",
    "_annotations.coco.json",
    "labels.json",
    "result.json",
    "annotations.json",
    "annotations/annotations.json",
    "coco.json",
    "annotations/instances.json",
)
# Where the images of a part are, and where those of all parts are; the best first.
_IMAGES = ("{part}", "images/{part}", "{part}/images", "{part}_images", "images_{part}", "img/{part}")
_ALL_IMAGES = ("images", "img", "imgs", "JPEGImages", "data", "images/default", "")
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}
# Keys that only Ultralytics' files have.
_ULTRALYTICS = {"path", "names", "nc"}


def resolve_dataset(spec: str | Path) -> DatasetConfig:
    """The paths behind a `--dataset` value. The validation part may be missing: its paths are empty then.

    Args:
        spec: A YAML file, whose paths are relative to its folder:

                name: my dataset
                train: {images: train2017, annotations: annotations/train.json}
                val: {images: val2017, annotations: annotations/val.json}

            or a folder like COCO's: `annotations/instances_train2017.json`, `.._val2017.json`, and images in
            `train2017/` and `val2017/`, in `images/train2017/`.., `train_images/`.. or all in `images/`. The
            year is optional. Exports of Roboflow, CVAT, FiftyOne and Label Studio in COCO's format work, too,
            and so does Ultralytics' `data.yaml` if COCO files are in its folder.

    Raises:
        YolactError: missing or incomplete; says what was looked for.
    """
    path = Path(spec)
    if is_folder(path):
        return _from_folder(path)
    if not os.path.exists(path):  # noqa: PTH110
        raise YolactError(f"dataset {path} does not exist; expected a folder or a YAML file")
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UsageError(
            f"dataset {path} is neither a folder nor a .yaml file that names images and annotations"
        )
    return _from_yaml(path)


def default_dataset(
    configured: DatasetConfig, part: str = "train", folder: str | Path = "data"
) -> DatasetConfig:
    """The dataset to use without `--dataset`: the configured one if it exists, else the one in `folder`.

    Args:
        configured: The dataset of the configuration.
        part: The part that is needed, `train` or `val`.
        folder: Its layout, or that of one of its subfolders, is one of those that `resolve_dataset` knows.

    Raises:
        YolactError: there is none, or there are several.
    """
    paths = [Path(getattr(configured, f"{part}_{kind}")) for kind in ("annotations", "images")]
    if is_file(paths[0]) and is_folder(paths[1]):
        if configured.val_annotations and not is_file(configured.val_annotations):
            log.warning("%s does not exist: there is no validation part", configured.val_annotations)
            return replace(configured, val_images="", val_annotations="")
        return configured
    root, found = Path(folder), {}
    try:
        folders = sorted(entry for entry in root.iterdir() if is_folder(entry)) if is_folder(root) else []
    except OSError as error:
        raise YolactError(f"cannot read folder {root}: {error.strerror or error}") from error
    for place in (root, *folders):
        try:
            dataset = _from_folder(place)
        except YolactError as error:
            log.debug("%s", error)
            continue
        if getattr(dataset, f"{part}_annotations"):
            found[place] = dataset
    if len(found) > 1:
        raise UsageError(f"several datasets in {root}: {', '.join(map(str, found))}; choose with --dataset")
    if not found:
        missing = next((path for path in paths if not os.path.exists(path)), paths[0])  # noqa: PTH110
        raise YolactError(
            f"no dataset: {missing} does not exist, and neither {root.resolve()} nor a folder in it holds"
            f" COCO annotations of a {part} part with their images; give the dataset with --dataset"
        )
    place, dataset = found.popitem()
    log.info("using the dataset in %s: %s", place, getattr(dataset, f"{part}_annotations"))
    return dataset


def read_yaml(path: str | Path, what: str = "file") -> Any:
    """Read a YAML file as dicts, lists and strings: `no`, `007` and dates stay the text that they are.

    Raises:
        YolactError: missing, not UTF-8, not YAML or beyond a limit; names the file, as `what`.
    """
    try:
        return parse_yaml(read_text(path, what, "yaml_bytes"))
    except ValueError as error:
        raise YolactError(f"cannot read {what} {path}: {error}") from error


def _from_yaml(path: Path) -> DatasetConfig:
    """The dataset that a YAML file describes."""
    content = read_yaml(path, "dataset")
    form = "expected `train: {images: DIR, annotations: FILE}` and the same for `val`, which may be left out"
    if not isinstance(content, dict):
        raise YolactError(f"dataset {path}: {form}; found {_describe(content)}")
    train = content.get("train")
    if content.keys() & _ULTRALYTICS and not isinstance(train, dict):
        return _from_ultralytics(path, content)
    if set(content) - {"name", "train", "val"} or not isinstance(content.get("name", ""), str):
        raise YolactError(f"dataset {path}: {form}, and a text `name`; found {_describe(content)}")
    found: dict[str, Any] = {f"{part}_{kind}": "" for part in _SPLITS for kind in ("images", "annotations")}
    for part in _SPLITS:
        section = content.get(part)
        if part == "val" and not section:
            continue
        if not isinstance(section, dict) or set(section) != {"images", "annotations"}:
            raise YolactError(f"dataset {path}: {form}; `{part}` holds {_describe(section)}")
        for key, value in section.items():
            found[f"{part}_{key}"] = str(_existing(path, f"{part}.{key}", value))
    return DatasetConfig(name=content.get("name") or path.stem, **found)


def _existing(source: Path, key: str, value: Any) -> Path:
    """The file or folder that the YAML file `source` names at `key`."""
    if not isinstance(value, str) or not value:
        raise YolactError(f"dataset {source}: {key} is {_describe(value)}; expected a path")
    path = source.parent / _expanded(value)
    folder = key.endswith("images")
    if not (is_folder(path) if folder else is_file(path)):
        raise YolactError(
            f"dataset {source}: {key} is {value}, but {os.path.abspath(path)} is no"  # noqa: PTH100
            f" {'folder' if folder else 'file'}; paths are relative to the folder of the YAML file"
        )
    return path


def _expanded(path: str) -> Path:
    """The path with `~` for the home folder, if there is one."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def _describe(value: Any) -> str:
    """A YAML value in a few words; never as a whole, as aliases can make it endless."""
    if isinstance(value, dict):
        return ", ".join(str(key)[:30] for key in list(value)[:10]) or "nothing"
    return "a list" if isinstance(value, list) else repr(value[:60]) if isinstance(value, str) else "nothing"


def ultralytics_root(path: Path, content: dict[str, Any]) -> Path:
    """The folder that the paths in Ultralytics' YAML file `path` are relative to."""
    value = content.get("path")
    root = path.parent / _expanded(value) if isinstance(value, str) else path.parent
    return root if is_folder(root) else path.parent


def ultralytics_part(root: Path, value: Any) -> Path | None:
    """What a part (`train: images/train`) of Ultralytics' YAML file names: folder, list or JSON file."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not 0 < len(value) <= limit("name"):
        return None
    # Roboflow writes ../train/images where it means train/images.
    places = [root / value, root / value.removeprefix("../")]
    return next((place for place in places if os.path.exists(place)), places[0])  # noqa: PTH110


def _from_ultralytics(path: Path, content: dict[str, Any]) -> DatasetConfig:
    """The COCO files in the folder that Ultralytics' YAML file describes."""
    root = ultralytics_root(path, content)
    found: dict[str, Any] = {f"{part}_{kind}": "" for part in _SPLITS for kind in ("images", "annotations")}
    for part, names in _SPLITS.items():
        place = ultralytics_part(root, next((content[name] for name in names if content.get(name)), None))
        if place is None:
            continue
        files = [place] if place.suffix == ".json" and is_file(place) else _annotation_files(root, names)
        folders = {file: place if is_folder(place) else _images(root, file, names) for file in files}
        if len(files) != 1 or not folders[files[0]]:
            output = path.with_name(f"{path.stem}_coco")
            raise YolactError(
                f"dataset {path} describes YOLO's text files, and there is no COCO file of its {part} part in"
                f" {root.resolve()}; convert it: yolact-data convert yolo {shlex.quote(str(path))}"
                f" {shlex.quote(str(output))}; then use --dataset {shlex.quote(str(output / 'dataset.yaml'))}"
            )
        found[f"{part}_annotations"], found[f"{part}_images"] = str(files[0]), str(folders[files[0]])
    if not found["train_annotations"]:
        raise YolactError(f"dataset {path}: `train` is {_describe(content.get('train'))}; expected a path")
    return DatasetConfig(name=path.stem, **found)


def _from_folder(root: Path) -> DatasetConfig:
    """The dataset in a folder of a known layout."""
    found: dict[str, Any] = {f"{part}_{kind}": "" for part in _SPLITS for kind in ("images", "annotations")}
    for part, names in _SPLITS.items():
        annotations = _annotation_files(root, names)
        if part == "train" and not annotations:
            annotations = [root / name for name in _ONE_PART if is_file(root / name)][:1]
        if not annotations and part == "val":
            continue
        if not annotations:
            looked = ", ".join(pattern.format(split=names[0]) for pattern in _ANNOTATIONS)
            raise YolactError(
                f"dataset {root}: no {part} annotations; looked for {looked}. "
                "Describe other layouts in a .yaml file"
            )
        pairs = [(file, folder) for file in annotations if (folder := _images(root, file, names))]
        if not pairs:
            looked = ", ".join(str(folder) for folder in _image_folders(Path(), annotations[0], names))
            raise YolactError(f"dataset {root}: no images for {annotations[0].name}; looked for {looked}")
        if len(pairs) > 1:
            files = ", ".join(str(file.relative_to(root)) for file, _ in pairs[:5])
            raise YolactError(f"dataset {root}: several {part} annotations ({files}); choose in a .yaml file")
        found[f"{part}_annotations"], found[f"{part}_images"] = map(str, pairs[0])
    return DatasetConfig(name=root.resolve().name, **found)


def _annotation_files(root: Path, names: Sequence[str]) -> list[Path]:
    """The files of the first pattern that matches any."""
    for pattern in _ANNOTATIONS:
        files = {file for name in names for file in root.glob(pattern.format(split=name))}
        if files:
            return sorted(files)
    return []


def _image_folders(root: Path, annotations: Path, names: Sequence[str]) -> list[Path]:
    """Folders that may hold the images of an annotation file, best first."""
    if annotations.name == "_annotations.coco.json":
        return [annotations.parent]
    parts = dict.fromkeys([annotations.stem.removeprefix("instances_"), *names])
    own = [root / pattern.format(part=part) for part in parts for pattern in _IMAGES]
    beside = [annotations.parent / name for name in _ALL_IMAGES]
    return list(dict.fromkeys([*own, *beside, *(root / name for name in _ALL_IMAGES)]))


def _images(root: Path, annotations: Path, names: Sequence[str]) -> Path | None:
    """The first folder that holds images; else the first one, as file names may begin with folders."""
    folders = [folder for folder in _image_folders(root, annotations, names) if is_folder(folder)]
    below = [folder for folder in folders if folder not in (root, annotations.parent)]
    if annotations.name == "_annotations.coco.json":
        below = folders
    return next((folder for folder in folders if _holds_images(folder)), below[0] if below else None)


def _holds_images(folder: Path) -> bool:
    """Whether one of the files in `folder` is an image, by its name."""
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(IMAGES) for entry in entries)
    except OSError:
        return False


def image_path(images: Path, file_name: str) -> Path:
    """The path of the image called `file_name` in the folder `images`; see `ImageFolder.find`."""
    path = images / file_name
    if os.path.exists(path):  # noqa: PTH110 - takes names that are too long
        return path
    changed = images.stat().st_mtime_ns if is_folder(images) else 0
    return _image_folder(images, changed).find(file_name)


@lru_cache(maxsize=4)
def _image_folder(images: Path, changed: int) -> ImageFolder:
    """The finder of a folder, kept until the folder changes."""
    return ImageFolder(images)
