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
from yolact.data.annotations import AnnotationFile, read_annotations
from yolact.data.augment import Augmenter
from yolact.data.batch import Sample, Target
from yolact.data.geometry import Geometry
from yolact.data.mask_targets import MaskSampler
from yolact.data.packed import PackedList, pickled
from yolact.data.reader.examples import require_examples
from yolact.data.reader.findings import Findings
from yolact.data.reader.image_files import check_sizes, find_images, size_problem
from yolact.data.segmentation import to_region
from yolact.model.preprocess import Normalise
from yolact.model.priors import prototype_size, pyramid_levels
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.files import is_file
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.sources.images import read_image

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One image of an annotation file, with its size according to the file and its annotations in order.

    The annotations are those of an `AnnotationFile`: checked, and in one form.
    """

    image_id: int
    path: Path
    height: int | None
    width: int | None
    annotations: list[dict[str, Any]] = field(default_factory=list)


class CocoDataset(Dataset[Sample]):
    """The images of a COCO annotation file, resized to the network's input, with their targets.

    Every image of the file is an item, with or without annotations. Crowd regions become crowd boxes. So do
    instances without a segmentation: they are neither examples nor background. Images with objects of other
    classes only are no items.

    Augmentation drops instances and crowds whose centre is outside the crop, and clips the boxes of the
    others; a sample may have no instances.

    Args:
        images: Folder that file names are relative to.
        annotations: COCO instances JSON.
        model: Input size and normalisation.
        classes: The classes to learn, in the order of the class indices.
        augment: Random changes; None for none.
        seed: Seed of these changes.
        crowd_as_instances: Take crowd regions with a mask for instances.
        other_classes: What objects of classes that are not in `classes` are: "background", or "ignore" for
            crowd boxes. None: there must be none.

    Raises:
        YolactError: the annotation file cannot be used; names the file and the entry.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        model: ModelConfig,
        classes: Classes,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        crowd_as_instances: bool = False,
        other_classes: str | None = None,
    ) -> None:
        self.images = Path(images)
        self.annotations = Path(annotations)
        self.model = model
        self.classes = classes
        self._normalise = Normalise(model)
        self.augmenter = Augmenter(augment, model, seed) if augment and augment.enabled else None
        self._labels = {number: index for index, number in enumerate(classes.category_ids)}
        self.crowd_as_instances = crowd_as_instances
        self.other_classes = other_classes
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
            YolactError: missing, unreadable, or of another size than the annotation file says.
        """
        image = read_image(record.path)
        declared = {"file_name": record.path, "height": record.height, "width": record.width}
        if problem := size_problem(declared, *image.shape[:2]):
            raise YolactError(problem)
        return image

    def _index(self, file: AnnotationFile) -> list[Record]:
        """The images of the file with their annotations."""
        findings = Findings()
        paths = find_images(file.images, self.images, findings)
        findings.raise_errors(file.path)
        records = {
            image["id"]: Record(image["id"], paths[image["id"]], image["height"], image["width"])
            for image in file.images
        }
        if self.other_classes is not None:
            left_out = file.images_without(self._labels)
            records = {number: record for number, record in records.items() if number not in left_out}
            text = "%s: %d of %s have objects of other classes only; they are left out"
            log.info(text, file.path, len(left_out), counted(len(file.images), "image"))
        for annotation in file.annotations:
            known = annotation["category_id"] in self._labels
            if not known and self.other_classes is None:
                raise YolactError(
                    f"{file.path}: annotation {annotation['id']} has category_id {annotation['category_id']},"
                    " which is not among the classes to learn"
                )
            if known or (self.other_classes == "ignore" and annotation["image_id"] in records):
                records[annotation["image_id"]].annotations.append(annotation)
        return list(records.values())

    def boxes(self, record: Record, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) float64 x1 y1 x2 y2 in pixels, clipped to the image, and which are crowds (n,)."""
        corners = np.array([a["bbox"] for a in record.annotations], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        crowd = np.array(
            [
                a["segmentation"] is None
                or a["category_id"] not in self._labels
                or (a["iscrowd"] == 1 and not self.crowd_as_instances)
                for a in record.annotations
            ],
            bool,
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
        shapes = prototype_size(size, self.model.proto_scale), pyramid_levels(size)[0]
        sampler = MaskSampler(geometry, size, shapes)
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
    return [record.path for record in dataset.records if not is_file(record.path)]


def check_trainable(dataset: CocoDataset) -> None:
    """Check what can be known before the first step: that there is something to learn, and the images' sizes.

    Of many images, a sample is looked at; the others are compared when they are read.

    Raises:
        YolactError: nothing to learn, or an image has another size than the annotation file says.
    """
    file = read_annotations(dataset.annotations)
    if dataset.other_classes is not None:
        file = file.only(dataset.classes.category_ids)
    paths = {record.image_id: record.path for record in dataset.records}
    require_examples(file, paths.keys(), dataset.crowd_as_instances)
    findings = Findings()
    check_sizes([image for image in file.images if image["id"] in paths], paths, findings)
    findings.raise_errors(file.path)
