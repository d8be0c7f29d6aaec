"""COCO annotation files as training samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from yolact.config import AugmentConfig, Classes, ModelConfig
from yolact.data.annotations import read_annotations
from yolact.data.augment import Augmenter
from yolact.data.batch import Sample, Target
from yolact.data.geometry import Geometry
from yolact.data.layout import image_path
from yolact.data.mask_targets import MaskSampler
from yolact.data.packed import PackedList, pickled
from yolact.data.segmentation import is_empty, to_region
from yolact.model.preprocess import Normalise
from yolact.model.priors import prototype_size, pyramid_levels
from yolact_runtime.errors import YolactError
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.sources.images import read_image
from yolact_runtime.typed import nearest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One image of an annotation file, with its size according to the file and its annotations in order."""

    image_id: int
    path: Path
    height: int | None
    width: int | None
    annotations: list[dict[str, Any]] = field(default_factory=list)


class CocoDataset(Dataset[Sample]):
    """The images of a COCO annotation file, resized to the network's input, with their targets.

    Every image of the file is an item, with or without annotations. Crowd regions become crowd boxes. So do
    instances without a usable segmentation: they are neither examples nor background.

    Augmentation drops instances and crowds whose centre is outside the crop, and clips the boxes of the
    others; a sample may have no instances.

    Args:
        images: Folder that file names are relative to.
        annotations: COCO instances JSON.
        model: Input size and normalisation.
        classes: The classes to learn, in the order of the class indices.
        augment: Random changes; None for none.
        seed: Seed of these changes.

    Raises:
        YolactError: the annotation file cannot be used; names the file and the annotation id.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        model: ModelConfig,
        classes: Classes,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.images = Path(images)
        self.annotations = Path(annotations)
        self.model = model
        self.classes = classes
        self._normalise = Normalise(model)
        self.augmenter = Augmenter(augment, model, seed) if augment and augment.enabled else None
        self._labels = {number: index for index, number in enumerate(classes.category_ids)}
        self._warned = False
        self.records = self._index(read_annotations(annotations))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def records(self) -> PackedList[Record]:
        """The images with their annotations, in memory that the processes of a DataLoader share."""
        return self._records

    @records.setter
    def records(self, records: Sequence[Record]) -> None:
        if not isinstance(records, PackedList):
            # Whoever needs a path only does not unpickle the annotations.
            records = PackedList(replace(one, annotations=pickled(one.annotations)) for one in records)
        self._records = records

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """The sample of (epoch, index), on which the augmentation depends; an index alone is of epoch 0.

        Raises:
            YolactError: the image is missing or unreadable, or a segmentation is damaged; names it.
        """
        if get_worker_info() is not None:
            # The workers are the parallelism; OpenCV's threads would compete with them.
            cv2.setNumThreads(0)
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index]
        image = self.read_image(record)
        height, width = image.shape[:2]
        boxes, crowd = self.boxes(record, height, width)
        if self.augmenter is None:
            geometry = Geometry.whole(height, width)
            resized = resize_batch([image], self.model.input_size, "float32")
            pixels = self._normalise(torch.from_numpy(resized))[0]
        else:
            photometric, geometry = self.augmenter.draw(epoch, index % len(self), boxes, crowd, height, width)
            augmented = self.augmenter.image(image, photometric, geometry)
            pixels = torch.from_numpy(self.augmenter.normalise(augmented))
        return Sample(pixels, self.target(record, boxes, crowd, geometry, height, width), record.image_id)

    def read_image(self, record: Record) -> np.ndarray:
        """The image of a record, BGR uint8 (H, W, 3), in its EXIF orientation.

        Raises:
            YolactError: missing or unreadable.
        """
        image = read_image(record.path)
        declared = (record.height, record.width)
        if None not in declared and declared != image.shape[:2] and not self._warned:
            self._warned = True
            log.warning(
                "%s is %dx%d, but %s says %sx%s; the real size is used. Find all such images with:"
                " yolact-data check %s --images %s",
                *(record.path, image.shape[1], image.shape[0], self.annotations, record.width, record.height),
                *(self.annotations, self.images),
            )
        return image

    def _index(self, content: dict[str, Any]) -> list[Record]:
        """The images of the file with their annotations, all checked."""
        records: dict[int, Record] = {}
        for image in content["images"]:
            number, name = image.get("id"), image.get("file_name")
            if type(number) is not int or not isinstance(name, str):
                raise YolactError(f"{self.annotations}: image {image} needs an 'id' and a 'file_name'")
            if number in records:
                raise YolactError(f"{self.annotations}: image id {number} is given twice ({name})")
            path = image_path(self.images, name)
            records[number] = Record(number, path, image.get("height"), image.get("width"))
        if not records:
            raise YolactError(f"{self.annotations} lists no images")
        strays: list[Any] = []
        masks = 0
        for annotation in content["annotations"]:
            self._check(annotation)
            masks += not is_empty(annotation.get("segmentation"))
            number = annotation.get("image_id")
            record = records.get(number) if isinstance(number, int) else None
            if record is None:
                strays.append(annotation.get("id"))
            else:
                record.annotations.append(annotation)
        if strays:
            log.warning(
                "%s: %d annotations of images that it does not list are skipped (the first: annotation %s)",
                *(self.annotations, len(strays), strays[0]),
            )
        if content["annotations"] and not masks:
            raise YolactError(
                f"{self.annotations}: no annotation has a segmentation; boxes alone are not enough"
            )
        return list(records.values())

    def _check(self, annotation: dict[str, Any]) -> None:
        """Raise a YolactError if class or box of an annotation cannot be used."""
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in self._labels:
            raise YolactError(
                f"{self.annotations}: annotation {annotation.get('id')} has category_id {category!r}; "
                + nearest(str(category), map(str, self._labels))
            )
        box = annotation.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)):
            raise YolactError(
                f"{self.annotations}: annotation {annotation.get('id')} has bbox {box!r}; "
                "expected [x, y, w, h]"
            )

    def boxes(self, record: Record, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) float64 x1 y1 x2 y2 in pixels, clipped to the image, and which are crowds (n,)."""
        corners = np.array([a["bbox"] for a in record.annotations], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        crowd = np.array(
            [bool(a.get("iscrowd")) or is_empty(a.get("segmentation")) for a in record.annotations], bool
        )
        return corners.clip(0, np.array([width, height, width, height], np.float64)), crowd

    def target(
        self,
        record: Record,
        boxes: np.ndarray,
        crowd: np.ndarray,
        geometry: Geometry,
        height: int,
        width: int,
    ) -> Target:
        """The ground truth of a record's image after `geometry`.

        Args:
            record: Of the image.
            boxes, crowd: Result of `boxes`.
            geometry: From the image to the network's input.
            height, width: Of the image.

        Raises:
            YolactError: a segmentation is damaged; names the annotation.
        """
        relative = geometry.boxes(boxes)  # (n, 4)
        sides = relative[:, 2:] - relative[:, :2]
        kept = (sides > 0).all(1)
        if self.augmenter is not None:
            kept &= geometry.keeps(boxes)
            kept &= (sides > self.augmenter.config.min_box_side).all(1)
        annotations = [record.annotations[i] for i in np.flatnonzero(kept & ~crowd)]
        size = self.model.input_size
        sampler = MaskSampler(geometry, size, (prototype_size(size), pyramid_levels(size)[0]))
        masks, semantic_masks = sampler(
            [self._region(annotation, height, width, geometry) for annotation in annotations]
        )
        return Target(
            boxes=torch.from_numpy(relative[kept & ~crowd]),
            labels=torch.tensor([self._labels[a["category_id"]] for a in annotations], dtype=torch.int64),
            masks=torch.from_numpy(masks),
            semantic_masks=torch.from_numpy(semantic_masks),
            crowd_boxes=torch.from_numpy(relative[kept & crowd]),
        )

    def _region(
        self, annotation: dict[str, Any], height: int, width: int, geometry: Geometry
    ) -> tuple[np.ndarray, int, int]:
        """The mask of an annotation inside the crop, and its position; see `to_region`."""
        try:
            return to_region(annotation["segmentation"], height, width, geometry.crop)
        except ValueError as error:
            raise YolactError(f"{self.annotations}: annotation {annotation.get('id')}: {error}") from None


def find_missing_images(dataset: CocoDataset) -> list[Path]:
    """The dataset's image files that do not exist."""
    return [record.path for record in dataset.records if not record.path.is_file()]
