"""What converters share: their source, and a builder of COCO annotation files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from yolact.data.segmentation import to_rle
from yolact_runtime.errors import YolactError
from yolact_runtime.sources.images import list_images
from yolact_runtime.typed import nearest


@dataclass(frozen=True)
class Source:
    """What to convert.

    Attributes:
        folder: Folder of the annotations.
        images: Folder of the images, if it is not the format's usual one.
        names: Class names by category id; None to take them from the annotations.
        only: Names without suffix of the images to convert; None for all.
    """

    folder: Path
    images: Path | None = None
    names: Mapping[int, str] | None = None
    only: frozenset[str] | None = None

    def wants(self, stem: str) -> bool:
        """Whether to convert the image of this name (without suffix)."""
        return self.only is None or stem in self.only

    def image_files(self, usual: Path) -> dict[str, Path]:
        """The images to convert by name without suffix, sorted; `usual` is the format's folder.

        Raises:
            YolactError: no folder, no images in it, or two of the same name.
        """
        folder = self.images or usual
        if not folder.is_dir():
            raise YolactError(f"no image folder {folder}; give it with --images")
        found: dict[str, Path] = {}
        for path in list_images([folder]):
            if path.stem in found:
                raise YolactError(f"{found[path.stem]} and {path} have the same name; rename one of them")
            if self.wants(path.stem):
                found[path.stem] = path
        return found


class CocoBuilder:
    """Collects images and instances, with ids from 1."""

    def __init__(self, names: Mapping[int, str] | None = None) -> None:
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
            ValueError: not polygons.
        """
        image = self._images[-1]
        rle = to_rle(polygons, image["height"], image["width"])
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
        self._add(label, polygons, int(coco_mask.area(rle)), [x1, y1, x2 - x1, y2 - y1])

    def add_mask(self, label: str, mask: np.ndarray, crowd: bool = False) -> None:
        """Add an instance or crowd region from its mask (height, width) bool, unless it is empty."""
        if not mask.any():
            return
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        segmentation = {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
        self._add(label, segmentation, int(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist(), crowd)

    def _add(self, label: str, segmentation: Any, area: int, bbox: list[float], crowd: bool = False) -> None:
        """Append an annotation of the last image."""
        if self._names is not None and label not in self._names.values():
            raise YolactError(
                f"{self._images[-1]['file_name']}: no class {label!r}; {nearest(label, self._names.values())}"
            )
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
