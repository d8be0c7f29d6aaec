"""Whether speed was gained by finding less: COCO AP of engines, and agreement of candidates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_bench.measure.candidate import Candidate
from yolact_bench.measure.stages import EngineCandidate
from yolact_runtime.errors import YolactError

log = logging.getLogger(__name__)


def accuracy(
    candidate: EngineCandidate, images: Path, annotations: Path, max_images: int | None = None
) -> dict[str, Any] | None:
    """Mask and box AP of all detections of an engine, whatever threshold it is measured with, on the first
    `max_images` of a COCO annotation file with its folder of images; of the candidate's `classes` only.

    Returns:
        {"mask_ap", "mask_ap50", "box_ap", "box_ap50", "images", "failures"}; AP 0..1, or None without such
        annotations. None if the engine's classes are not those of the file.

    Raises:
        YolactError: the file cannot be used, or none of its images is there.
    """
    from yolact.evaluation.evaluate import predict, score
    from yolact.evaluation.ground_truth import read_ground_truth

    truth = read_ground_truth(annotations, images)
    try:
        found = predict(
            candidate.engine, images, truth, batch_size=1, max_images=max_images, classes=candidate.classes
        )
    except YolactError as error:
        log.warning("no AP of %s: %s", candidate.name, error)
        return None
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


def agree(first: Candidate, second: Candidate, images: Sequence[Path]) -> dict[str, Any] | None:
    """Match the instances of two candidates with the same weights.

    Returns:
        `instances` of the first in these `images`, how many of them `matched` one of the second of their
        category with a mask IoU above 0.9, and the mean `mask_iou` of these, 0 without any; None if the
        classes differ.
    """
    from yolact.evaluation.matching import match_instances, pairwise_iou

    instances = 0
    overlaps: list[float] = []
    for number, path in enumerate(images):
        mine, others = first.to_coco(path, number), second.to_coco(path, number)
        if mine is None or others is None:
            return None
        masks, other_masks = ([entry["segmentation"] for entry in side] for side in (mine, others))
        iou = pairwise_iou(masks, other_masks)
        classes, other_classes = (np.array([one["category_id"] for one in side]) for side in (mine, others))
        same = classes[:, None] == other_classes[None]
        instances += len(mine)
        overlaps += [iou[pair] for pair in match_instances(np.where(same & (iou > 0.9), iou, -np.inf))]
    return {
        "images": len(images),
        "instances": instances,
        "matched": len(overlaps),
        "mask_iou": float(np.mean(overlaps)) if overlaps else 0.0,
    }
