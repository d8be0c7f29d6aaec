"""COCO AP of contenders on the images they are measured with, so that nobody gains speed by finding less."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yolact_bench.contender import Contender
from yolact_bench.stages import EngineContender
from yolact_runtime.errors import YolactError, missing_extra

log = logging.getLogger(__name__)


def check_packages() -> None:
    """Raise a YolactError where nothing can be evaluated for want of PyTorch."""
    if find_spec("torch") is None:
        raise missing_extra("AP of the engines", "train")


def accuracy(
    contender: Contender, images: Path, annotations: Path, max_images: int | None = None
) -> dict[str, Any] | None:
    """Mask and box AP, all detections of a contender counting, whatever threshold it is measured with.

    Args:
        contender: It.
        images: Folder.
        annotations: COCO annotation file.
        max_images: The first ones of the file only; None for all.

    Returns:
        {"mask_ap", "mask_ap50", "box_ap", "box_ap50", "images", "failures"}; AP 0..1, or None without such
        annotations. None where the contender's classes are not the file's.

    Raises:
        YolactError: the file cannot be used, none of its images is there, or the extra
            `train` is missing.
    """
    check_packages()
    from yolact.evaluation.evaluate import Predictions, predict, score
    from yolact.evaluation.ground_truth import read_ground_truth

    truth = read_ground_truth(annotations, images)
    if isinstance(contender, EngineContender):
        try:
            found = predict(contender.engine, images, truth, batch_size=1, max_images=max_images)
        except YolactError as error:
            log.warning("no AP of %s: %s", contender.name, error)
            return None
    else:
        entries = _entries(contender, images, truth.images[:max_images])
        if entries is None:
            log.warning("no AP of %s: its classes are others than those of %s", contender.name, annotations)
            return None
        found = Predictions(image_ids=[record["id"] for record in truth.images[:max_images]])
        found.masks = entries
        found.boxes = [
            {key: value for key, value in entry.items() if key != "segmentation"} for entry in entries
        ]
    evaluation = score(truth, found)
    mask, box = evaluation.mask, evaluation.box
    return {
        "mask_ap": mask and mask.ap,
        "mask_ap50": mask and mask.ap50,
        "box_ap": box.ap,
        "box_ap50": box.ap50,
        "images": evaluation.images,
        "failures": len(evaluation.failures),
    }


def _entries(
    contender: Contender, images: Path, records: list[dict[str, Any]]
) -> list[dict[str, Any]] | None:
    found: list[dict[str, Any]] = []
    for record in records:
        entries = contender.to_coco(images / record["file_name"], record["id"])
        if entries is None:
            return None
        found += entries
    return found
