"""Inputs for converters, and what pycocotools reads from their results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from yolact.dataset_tools.convert import Conversion

HEIGHT, WIDTH = 40, 60


def disc(x: float, y: float, radius: float) -> np.ndarray:
    """Mask (HEIGHT, WIDTH) of a disc."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / (a | b).sum())


def write_image(folder: Path, *names: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    """Write grey images of this height and width."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((*size, 3), 90, np.uint8))


def write_values(path: Path, values: np.ndarray) -> None:
    """Write an array as it is, booleans as 0 and 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values.astype(np.uint8) if values.dtype == bool else values
    path.write_bytes(cv2.imencode(path.suffix.lower(), values)[1].tobytes())


def opened(conversion: Conversion, tmp_path: Path) -> dict[str, list[tuple[str, np.ndarray]]]:
    """(class name, mask) by image name, as pycocotools reads them.

    The file must be without errors, its images must be there, and training must be able to read it.
    """
    from pycocotools.coco import COCO

    from yolact.config import ModelConfig
    from yolact.data.annotations import read_classes
    from yolact.data.coco import CocoDataset
    from yolact.dataset_tools.check import check_annotations

    path = tmp_path / "converted.json"
    path.write_text(json.dumps(conversion.content))
    report = check_annotations(path, conversion.images)
    assert report.count("error") == 0, report.findings
    dataset = CocoDataset(conversion.images, path, ModelConfig(input_size=64), read_classes(path))
    assert len(dataset[0].target.boxes) <= len(dataset.records[0].annotations)
    coco = COCO(path)
    return {
        image["file_name"]: [
            (coco.cats[a["category_id"]]["name"], coco.annToMask(a).astype(bool))
            for a in coco.imgToAnns[number]
            if a["segmentation"]
        ]
        for number, image in coco.imgs.items()
    }
