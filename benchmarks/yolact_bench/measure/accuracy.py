"""COCO AP of candidates on the images they are measured with, so that nobody gains speed by finding less."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from yolact_bench.measure.candidate import Candidate
from yolact_bench.measure.stages import EngineCandidate
from yolact_runtime.errors import YolactError

log = logging.getLogger(__name__)


def accuracy(
    candidate: Candidate, images: Path, annotations: Path, max_images: int | None = None
) -> dict[str, Any] | None:
    """Mask and box AP of all detections of a candidate, whatever threshold it is measured with.

    Args:
        candidate: To evaluate.
        images: Folder.
        annotations: COCO annotation file.
        max_images: The first ones of the file only; None for all.

    Returns:
        {"mask_ap", "mask_ap50", "box_ap", "box_ap50", "images", "failures"}; AP 0..1, or None without such
        annotations. None if the candidate's classes are not those of the file.

    Raises:
        YolactError: the file cannot be used, or none of its images is there.
    """
    from yolact.evaluation.evaluate import Predictions, predict, score
    from yolact.evaluation.ground_truth import read_ground_truth

    truth = read_ground_truth(annotations, images)
    records = truth.images[:max_images]
    if isinstance(candidate, EngineCandidate):
        try:
            found = predict(candidate.engine, images, truth, batch_size=1, max_images=max_images)
        except YolactError as error:
            log.warning("no AP of %s: %s", candidate.name, error)
            return None
    else:
        found = Predictions(image_ids=[record["id"] for record in records])
        for record in records:
            entries = candidate.to_coco(images / record["file_name"], record["id"])
            if entries is None:
                log.warning("no AP of %s: its classes are not those of %s", candidate.name, annotations)
                return None
            found.masks += entries
        found.boxes = [
            {key: value for key, value in entry.items() if key != "segmentation"} for entry in found.masks
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
