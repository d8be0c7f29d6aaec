"""How many instances of one implementation another one finds, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact.evaluation.matching import match_instances, pairwise_iou
from yolact_bench.measure.candidate import Candidate


def agreement(first: dict[str, Any], second: dict[str, Any]) -> tuple[int, float]:
    """Match the instances of two results of one image.

    Returns:
        How many instances of the first match one of the second: the same class and mask IoU above 0.9;
        and the mean mask IoU of these.
    """
    iou = pairwise_iou(first["rles"], second["rles"])
    same = np.asarray(first["classes"])[:, None] == np.asarray(second["classes"])[None]
    pairs = match_instances(np.where(same & (iou > 0.9), iou, -np.inf))
    return len(pairs), float(np.mean([iou[pair] for pair in pairs])) if pairs else 0.0


def agree(first: Candidate, second: Candidate, images: Sequence[Path]) -> dict[str, Any] | None:
    """Match the instances of two candidates with the same weights.

    Returns:
        `instances` of the first in these `images`, how many of them `matched` one of the second of their
        category with a mask IoU above 0.9, and the mean `mask_iou` of these; None if the classes differ.
    """
    instances = matched = 0
    overlap = 0.0
    for number, path in enumerate(images):
        sides = []
        for candidate in (first, second):
            entries = candidate.to_coco(path, number)
            if entries is None:
                return None
            classes = [entry["category_id"] for entry in entries]
            sides.append({"classes": classes, "rles": [entry["segmentation"] for entry in entries]})
        same, iou = agreement(*sides)
        instances += len(sides[0]["rles"])
        matched += same
        overlap += same * iou
    return {
        "images": len(images),
        "instances": instances,
        "matched": matched,
        "mask_iou": overlap / matched if matched else 0.0,
    }
