"""Find the images and annotation files of a dataset: a YAML file, or a folder in a common layout."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from yolact.config import DatasetConfig
from yolact.data.image_files import ImageFolder
from yolact_runtime.errors import UsageError, YolactError

_ANNOTATIONS = (
    "annotations/instances_{split}*.json",
    "annotations/{split}*.json",
    "instances_{split}*.json",
    "*_{split}.json",
    "{split}*.json",
    "{split}*/_annotations.coco.json",
)
_SPLITS = {"train": ("train",), "val": ("val", "valid")}


def resolve_dataset(spec: str | Path) -> DatasetConfig:
    """The paths behind a `--dataset` value.

    Args:
        spec: A YAML file, whose paths are relative to its folder:

                name: my dataset
                train: {images: train2017, annotations: annotations/train.json}
                val: {images: val2017, annotations: annotations/val.json}

            or a folder like COCO's: `annotations/instances_train2017.json`, `.._val2017.json`, and images in
            `train2017/` and `val2017/`, in `images/train2017/`.., or all in `images/`. The year is optional.
            Roboflow's `train/_annotations.coco.json` works, too.

    Raises:
        YolactError: missing or incomplete; says what was looked for.
    """
    path = Path(spec)
    if path.is_dir():
        return _from_folder(path)
    if not path.exists():
        raise YolactError(f"dataset {path} does not exist; expected a folder or a YAML file")
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UsageError(
            f"dataset {path} is neither a folder nor a .yaml file that names images and annotations"
        )
    return _from_yaml(path)


def _from_yaml(path: Path) -> DatasetConfig:
    """The dataset that a YAML file describes."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise YolactError(f"cannot read dataset {path}: {' '.join(str(error).split())}") from error
    form = "expected `train: {images: DIR, annotations: FILE}` and the same for `val`"
    if not isinstance(content, dict) or set(content) - {"name", "train", "val"}:
        raise YolactError(f"dataset {path}: {form}, and `name:`; found {_keys(content)}")
    found: dict[str, Any] = {}
    for split in _SPLITS:
        section = content.get(split)
        if not isinstance(section, dict) or set(section) != {"images", "annotations"}:
            raise YolactError(f"dataset {path}: {form}; `{split}` holds {_keys(section)}")
        for key, value in section.items():
            found[f"{split}_{key}"] = str(_existing(path, f"{split}.{key}", value))
    return DatasetConfig(name=str(content.get("name", path.stem)), **found)


def _existing(source: Path, key: str, value: Any) -> Path:
    if not isinstance(value, str):
        raise YolactError(f"dataset {source}: {key} = {value!r}; expected a path")
    path = source.parent / Path(value).expanduser()
    folder = key.endswith("images")
    if not (path.is_dir() if folder else path.is_file()):
        raise YolactError(f"dataset {source}: {key} = {path} is not a {'folder' if folder else 'file'}")
    return path


def _keys(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, dict) else f"{type(value).__name__} {value!r:.60}"


def _from_folder(root: Path) -> DatasetConfig:
    """The dataset in a folder of a known layout."""
    found: dict[str, Any] = {}
    for split, names in _SPLITS.items():
        annotations = _annotation_files(root, names)
        if not annotations:
            looked = ", ".join(pattern.format(split=names[0]) for pattern in _ANNOTATIONS)
            raise YolactError(
                f"dataset {root}: no {split} annotations; looked for {looked}. "
                "Describe other layouts in a .yaml file"
            )
        pairs = [(file, folder) for file in annotations if (folder := _images(root, file, names))]
        if not pairs:
            looked = ", ".join(str(folder) for folder in _image_folders(Path(), annotations[0], names))
            raise YolactError(f"dataset {root}: no images for {annotations[0].name}; looked for {looked}")
        if len(pairs) > 1:
            files = ", ".join(str(file.relative_to(root)) for file, _ in pairs)
            raise YolactError(
                f"dataset {root}: several {split} annotations ({files}); choose in a .yaml file"
            )
        found[f"{split}_annotations"], found[f"{split}_images"] = map(str, pairs[0])
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
    split = annotations.stem.removeprefix("instances_")
    folders = dict.fromkeys([split, *names])
    return [
        *(root / parent / name for parent in ("", "images") for name in folders),
        root / "images",
        root / "img",
    ]


def _images(root: Path, annotations: Path, names: Sequence[str]) -> Path | None:
    return next((folder for folder in _image_folders(root, annotations, names) if folder.is_dir()), None)


def image_path(images: Path, file_name: str) -> Path:
    """The path of the image called `file_name` in the folder `images`; see `ImageFolder.find`."""
    path = images / file_name
    if path.exists():
        return path
    changed = images.stat().st_mtime_ns if images.exists() else 0
    return _image_folder(images, changed).find(file_name)


@lru_cache(maxsize=4)
def _image_folder(images: Path, changed: int) -> ImageFolder:
    """The finder of a folder, kept until the folder changes."""
    return ImageFolder(images)
