"""The files that a dataset is read from, to be compared with those that a command writes."""

from __future__ import annotations

from pathlib import Path

from yolact.config import DatasetConfig
from yolact.data.layout import resolve_dataset
from yolact_runtime.files import is_file
from yolact_runtime.outputs import Named


def dataset_files(dataset: str | Path | DatasetConfig | None) -> list[Named]:
    """The YAML file, annotation files and folders of images of a `--dataset` value; nothing for None.

    Raises:
        YolactError: as `resolve_dataset`.
    """
    if dataset is None:
        return []
    found = dataset if isinstance(dataset, DatasetConfig) else resolve_dataset(dataset)
    paths = [found.train_images, found.train_annotations, found.val_images, found.val_annotations]
    if not isinstance(dataset, DatasetConfig) and is_file(dataset):
        paths.append(str(dataset))
    return [("--dataset", path) for path in paths if path]
