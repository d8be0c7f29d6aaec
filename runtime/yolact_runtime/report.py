"""COCO results files, and which image id each image has."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from yolact_runtime.errors import YolactError
from yolact_runtime.files import read_json, write_json
from yolact_runtime.results import Result


class ImageIds:
    """The image ids of a COCO annotation file; it needs no "annotations".

    Args:
        path: The file.

    Raises:
        YolactError: it cannot be read or has no usable "images".
    """

    def __init__(self, path: str | Path) -> None:
        content = read_json(path, "annotation file")
        try:
            images = [(str(image["file_name"]), image["id"]) for image in content["images"]]
            self._categories = {
                category["id"]: str(category["name"]) for category in content.get("categories", [])
            }
        except (TypeError, KeyError, AttributeError):
            raise YolactError(
                f'annotation file {path} needs "images", each with "id" and "file_name", as in COCO'
            ) from None
        self.path = path
        self._entries: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        for name, image_id in images:
            parts = _parts(name)
            self._entries[parts[-1] if parts else ""].append((parts, image_id))

    def find(self, path: Path) -> int | None:
        """The id of the image whose file name agrees with `path` in most folders; None without one.

        Raises:
            YolactError: several agree equally well.
        """
        parts = _parts(path.as_posix())
        candidates = [
            (_common_tail(parts, entry), image_id) for entry, image_id in self._entries.get(parts[-1], [])
        ]
        if not candidates:
            return None
        best = max(length for length, _ in candidates)
        ids = [image_id for length, image_id in candidates if length == best]
        if len(set(ids)) > 1:
            raise YolactError(f"image {path}: {self.path} has {len(ids)} images of that name")
        return ids[0]

    def contradictions(self, class_ids: tuple[int, ...], class_names: tuple[str, ...]) -> list[str]:
        """Ids that stand for another category in this file than in the engine, a sentence for each."""
        engine = dict(zip(class_ids, class_names, strict=True))
        return [
            f"category {key} is {self._categories[key]!r} in {self.path} but {name!r} in the engine"
            for key, name in engine.items()
            if key in self._categories and self._categories[key] != name
        ]


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _common_tail(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[-1 - length] == b[-1 - length]:
        length += 1
    return length


class CocoReport:
    """Collects results and writes them as three COCO files.

    Beside the masks' file, `mask_detections.json`, stand `bbox_detections.json` with the boxes and their
    scores, and `images.json` with the "images" and "categories" that the ids refer to, so that
    `COCO("images.json").loadRes("mask_detections.json")` opens. For another name such as `run1.json` they are
    `run1_bbox.json` and `run1_images.json`.

    Args:
        path: The masks' file.
        class_ids: The engine's category ids.
        class_names: The engine's class names.
        polygons: Outlines instead of run lengths.
    """

    def __init__(
        self,
        path: str | Path,
        class_ids: tuple[int, ...],
        class_names: tuple[str, ...],
        polygons: bool = False,
    ) -> None:
        self.masks_path = Path(path)
        default = self.masks_path.name == "mask_detections.json"
        stem = self.masks_path.stem
        self.boxes_path = self.masks_path.with_name(
            "bbox_detections.json" if default else f"{stem}_bbox.json"
        )
        self.images_path = self.masks_path.with_name("images.json" if default else f"{stem}_images.json")
        self._polygons = polygons
        self._categories = [
            {"id": key, "name": name} for key, name in zip(class_ids, class_names, strict=True)
        ]
        self._images: list[dict[str, Any]] = []
        self._masks: list[dict[str, Any]] = []
        self._boxes: list[dict[str, Any]] = []

    def add(self, result: Result, image_id: int, file_name: str) -> None:
        """Take in the result of one image."""
        self._images.append(
            {"id": image_id, "file_name": file_name, "height": result.height, "width": result.width}
        )
        self._masks += result.to_coco(image_id, polygons=self._polygons)
        self._boxes += result.to_coco(image_id, masks=False)

    def write(self) -> None:
        """Write the three files, each whole or not at all.

        Without any detection the results are an empty list: valid JSON, which pycocotools' `loadRes`
        itself does not accept.

        Raises:
            YolactError: a file cannot be written.
        """
        write_json(self.masks_path, self._masks)
        write_json(self.boxes_path, self._boxes)
        sidecar = {"info": {}, "images": self._images, "annotations": [], "categories": self._categories}
        write_json(self.images_path, sidecar)
