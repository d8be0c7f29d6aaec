"""COCO's summary and precision-recall curves, computed by pycocotools or by faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolact.evaluation.ground_truth import GroundTruth
from yolact_runtime.errors import YolactError, first_line

log = logging.getLogger(__name__)

# How many classes are evaluated together.
_CLASSES = 1000


@dataclass(frozen=True)
class Metrics:
    """COCO's summary for boxes or masks, 0..1. None if there are no such annotations.

    Attributes:
        ap: Average precision over IoU thresholds .50, .55 ... .95 and all classes.
        ap50: AP at IoU 0.50.
        ap75: AP at IoU 0.75.
        ap_small: AP of objects below 32 x 32 pixels.
        ap_medium: AP of objects from 32 x 32 to 96 x 96 pixels.
        ap_large: AP of larger objects.
        ar1: Average recall with one detection for each image and class.
        ar10: Average recall with ten.
        ar100: Average recall with a hundred.
        ar_small: Average recall of small objects with a hundred detections.
        ar_medium: The same for medium objects.
        ar_large: The same for large objects.
        by_iou: AP at each threshold, `"0.50"` to `"0.95"`.
        by_class: AP of each category of the annotation file, by name.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    by_iou: dict[str, float | None]
    by_class: dict[str, float | None]


@dataclass(frozen=True)
class Curves:
    """Interpolated precision over recall, both 0..1, of boxes or masks of all sizes.

    A curve has a precision for each of `recall`, 0 beyond the highest recall reached. Its mean is the AP in
    `Metrics`.

    Attributes:
        recall: COCO's 101 recalls: 0, 0.01 ... 1.
        mean: Mean over the classes with annotations, at IoU `"0.50"`, `"0.75"` and `"0.50:0.95"` (mean over
            the thresholds). None if no class has annotations.
        by_class: Curve at IoU 0.50 of each category by name; None for one without annotations.
    """

    recall: list[float]
    mean: dict[str, list[float] | None]
    by_class: dict[str, list[float] | None]


def coco_library(faster: bool) -> tuple[type, type]:
    """The classes `COCO` and `COCOeval` of pycocotools, or those of faster-coco-eval.

    Raises:
        YolactError: faster-coco-eval is not installed.
    """
    if not faster:
        return COCO, COCOeval
    try:
        import faster_coco_eval
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "faster_coco_eval"
        problem = "is not installed" if missing else f"does not load ({first_line(error)})"
        raise YolactError(
            f"the faster evaluation needs faster-coco-eval, which {problem}; run: pip install"
            " faster-coco-eval"
        ) from None
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def metrics_of(
    truth: GroundTruth,
    annotations: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    image_ids: list[int],
    kind: str,
    library: tuple[type, type],
) -> tuple[Metrics, Curves]:
    """Summary and precision-recall curves of boxes or masks.

    Args:
        truth: Has images and categories.
        annotations: Its annotations that count.
        predictions: COCO result entries.
        image_ids: The images that count.
        kind: `"bbox"` or `"segm"`.
        library: Result of `coco_library`.
    """
    coco_class, evaluation_class = library
    # The libraries compute with ids as 64-bit integers or floats, which do not hold every id of a file.
    numbers = {image["id"]: number for number, image in enumerate(truth.images, start=1)}
    images = [{**image, "id": numbers[image["id"]]} for image in truth.images]
    class_names = truth.class_names
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        copies, found = (
            [{**entry, "image_id": numbers[entry["image_id"]]} for entry in entries]
            for entries in (annotations, predictions)
        )
        expected = _coco(coco_class, truth, images, copies)
        # loadRes cannot take an empty list.
        actual = expected.loadRes(found) if found else _coco(coco_class, truth, images, [])
        used = {entry["category_id"] for entry in annotations}
        # The others have no AP. Each takes 200 kB while it is evaluated.
        class_ids = [number for number in class_names if number in used] or list(class_names)[:1]
        runs = []
        for first in range(0, len(class_ids), _CLASSES):
            run = evaluation_class(expected, actual, kind)
            run.params.imgIds = [numbers[number] for number in image_ids]
            run.params.catIds = class_ids[first : first + _CLASSES]
            run.evaluate()
            run.accumulate()
            runs.append((run.eval["precision"][..., -1].copy(), run.eval["recall"]))
    log.debug("pycocotools (%s): %s", kind, " ".join(printed.getvalue().split()))
    # (IoU threshold, recall, class, area all/small/medium/large, at most 1/10/100 detections); -1: undefined
    precision = np.concatenate([one for one, _ in runs], axis=2)
    recall = np.concatenate([one for _, one in runs], axis=1)  # (IoU threshold, class, area, at most)
    names = [class_names[number] for number in class_ids]
    metrics = Metrics(
        ap=_mean(precision[..., 0]),
        ap50=_mean(precision[0, ..., 0]),
        ap75=_mean(precision[5, ..., 0]),
        ap_small=_mean(precision[..., 1]),
        ap_medium=_mean(precision[..., 2]),
        ap_large=_mean(precision[..., 3]),
        ar1=_mean(recall[..., 0, 0]),
        ar10=_mean(recall[..., 0, 1]),
        ar100=_mean(recall[..., 0, 2]),
        ar_small=_mean(recall[..., 1, 2]),
        ar_medium=_mean(recall[..., 2, 2]),
        ar_large=_mean(recall[..., 3, 2]),
        by_iou={
            f"{iou:.2f}": _mean(row[..., 0]) for iou, row in zip(run.params.iouThrs, precision, strict=True)
        },
        by_class={
            **dict.fromkeys(class_names.values()),
            **{name: _mean(precision[:, :, i, 0]) for i, name in enumerate(names)},
        },
    )
    curves = curves_of(precision[..., 0], run.params.recThrs, names)
    return metrics, replace(curves, by_class={**dict.fromkeys(metrics.by_class), **curves.by_class})


def curves_of(precision: np.ndarray, recall: np.ndarray, names: Sequence[str]) -> Curves:
    """The curves in the arrays of `COCOeval`.

    Args:
        precision: (10, R, C) for IoU .50, .55 ... .95, recalls and classes; -1 for a class without
            annotations.
        recall: (R,) the recalls.
        names: The C classes.
    """
    defined = precision[0, 0] > -1  # (C,)

    def mean(rows: np.ndarray) -> list[float] | None:  # (thresholds, R, C)
        return rows[..., defined].mean(axis=(0, 2)).tolist() if defined.any() else None

    return Curves(
        recall=recall.tolist(),
        mean={"0.50": mean(precision[:1]), "0.75": mean(precision[5:6]), "0.50:0.95": mean(precision)},
        by_class={name: precision[0, :, i].tolist() if defined[i] else None for i, name in enumerate(names)},
    )


def _coco(
    coco_class: type, truth: GroundTruth, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> Any:
    """A `COCO` object of the given images and annotations."""
    lists = {"images": images, "categories": truth.categories, "annotations": annotations}
    coco = coco_class()
    coco.dataset = {"info": {}, **lists}
    coco.createIndex()
    return coco


def _mean(values: np.ndarray) -> float | None:
    """The mean of the values that are defined (not -1); None if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
