"""COCO average precision of any engine, by pycocotools' rules.

Every image of the annotation file counts, even without annotations or detections, or if it cannot be read.
Boxes are ranked by box scores, masks by mask scores (which differ if the model re-scores masks).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolact.data.layout import image_path
from yolact.evaluation.confusion import SCORE_THRESHOLD, Confusion, confusion_matrix
from yolact.evaluation.ground_truth import GroundTruth, match_categories, read_ground_truth
from yolact.evaluation.metrics import Curves, Metrics, coco_library, metrics_of
from yolact_runtime import Engine, Result, YolactError
from yolact_runtime.commandline import track
from yolact_runtime.errors import EngineUnavailableError, UsageError, counted
from yolact_runtime.files import is_file
from yolact_runtime.sources.images import read_image

log = logging.getLogger(__name__)

DEFAULT_BATCH = 8


@dataclass(frozen=True)
class Details:
    """Curves and counts for a report.

    Attributes:
        box: Curves of the boxes.
        mask: Curves of the masks; None if the annotations have none.
        confusion: Of masks, or of boxes if the annotations have no masks.
    """

    box: Curves
    mask: Curves | None
    confusion: Confusion


@dataclass(frozen=True)
class Evaluation:
    """The accuracy of an engine on an annotation file.

    Attributes:
        box: Metrics of the boxes.
        mask: Metrics of the masks; None if the annotations have none.
        images: Number of images.
        detections: Number of detections in them.
        failures: Reasons by file name for images that could not be evaluated. They count as images without
            detections.
        ms_per_image: Mean time from image in memory to boxes and RLE masks, in milliseconds.
        details: Curves and confusion matrix, if `score` was asked for them.
    """

    box: Metrics
    mask: Metrics | None
    images: int
    detections: int
    failures: dict[str, str]
    ms_per_image: float
    details: Details | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, numbers and None; without `details` if there are none."""
        content = asdict(self)
        if self.details is None:
            del content["details"]
        return content


@dataclass
class Predictions:
    """COCO result entries of an engine: `boxes` with box scores, `masks` (and boxes) with mask scores.

    `category_ids` are the categories of the annotation file that were asked for; None for all.
    """

    image_ids: list[int] = field(default_factory=list)
    boxes: list[dict[str, Any]] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    category_ids: frozenset[int] | None = None


def evaluate(
    engine: Engine,
    images: str | Path,
    annotations: str | Path,
    *,
    batch_size: int | None = None,
    max_images: int | None = None,
    progress: bool = True,
    score_threshold: float = 0.0,
    classes: Iterable[str | int] | None = None,
) -> Evaluation:
    """Compute box and mask AP of an engine on a COCO annotation file.

    Args:
        engine: Any engine. Its classes are matched with the file's categories by id and name, else by name.
        images: Folder of the images.
        annotations: COCO annotation file.
        batch_size: Images in one call; None for 8, or the engine's maximum if that is less.
        max_images: Evaluate only the first images of the file; None for all.
        progress: Show a progress bar on standard error if that is a terminal.
        score_threshold: Drop detections with this box score or less. 0 keeps all, as COCO expects.
        classes: Evaluate only these classes of the engine, by name or category id; None for all. All images
            count, as with `catIds` in pycocotools.

    Raises:
        UsageError: a number is out of range, or a class that the engine or the file does not have.
        YolactError: the annotation file cannot be used, has none of the engine's classes, or `images` has
            none of its images. If single images fail, `Evaluation.failures` says why.
    """
    truth = read_ground_truth(annotations, images)
    indices = engine.class_indices(classes)
    found = predict(engine, images, truth, batch_size, max_images, progress, score_threshold, classes=indices)
    return score(truth, found)


def predict(
    engine: Engine,
    images: str | Path,
    truth: GroundTruth,
    batch_size: int | None = None,
    max_images: int | None = None,
    progress: bool = True,
    score_threshold: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
    classes: frozenset[int] | None = None,
) -> Predictions:
    """Run an engine over the images of an annotation file; see `evaluate` for arguments and errors.

    `stop` is called before each batch; once it is true, the predictions of the others are returned. `classes`
    are 0-based indices.
    """
    for name, value in (("batch_size", batch_size), ("max_images", max_images)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be 1 or more")
    folder = Path(images)
    categories = match_categories(engine.metadata, truth, classes)
    records = truth.images if max_images is None else truth.images[:max_images]
    if not any(is_file(image_path(folder, record["file_name"])) for record in records):
        raise YolactError(
            f"none of {counted(len(records), 'image')} of {truth.path} is in {folder}, for example"
            f" {records[0]['file_name']}"
        )
    size = batch_size or min(engine.metadata.max_batch, DEFAULT_BATCH)
    batches = [records[start : start + size] for start in range(0, len(records), size)]
    found = Predictions(image_ids=[record["id"] for record in records])
    if classes is not None:
        found.category_ids = frozenset(categories.values())
    for batch in track(batches, "evaluating") if progress else batches:
        if stop():
            break
        pairs = ((record, _open(record, folder, found)) for record in batch)
        opened = [(record, image) for record, image in pairs if image is not None]
        for record, result in _results(engine, opened, score_threshold, classes, found):
            start = time.perf_counter()
            masks = result.to_coco(record["id"])
            found.seconds += time.perf_counter() - start
            boxes = result.to_coco(record["id"], masks=False)
            for entries, all_entries in ((boxes, found.boxes), (masks, found.masks)):
                for entry in entries:
                    if entry["category_id"] in categories:
                        all_entries.append({**entry, "category_id": categories[entry["category_id"]]})
    return found


def _open(record: dict[str, Any], folder: Path, found: Predictions) -> np.ndarray | None:
    """The image of a record; None and a failure if it cannot be read or has another size."""
    try:
        image = read_image(image_path(folder, record["file_name"]))
        height, width = image.shape[:2]
        if (height, width) != (record["height"], record["width"]):
            raise YolactError(
                f"{record['file_name']} is {width} x {height} pixels, but the annotation file says"
                f" {record['width']} x {record['height']}"
            )
    except YolactError as error:
        _fail(record, error, found)
        return None
    return image


def _results(
    engine: Engine,
    opened: list[tuple[dict[str, Any], np.ndarray]],
    score_threshold: float,
    classes: frozenset[int] | None,
    found: Predictions,
) -> Iterator[tuple[dict[str, Any], Result]]:
    """Predict a batch; if that fails, one image after the other, so that only the bad ones fail."""
    start = time.perf_counter()
    try:
        meta = engine.metadata
        ids = None if classes is None else [meta.category_ids[index] for index in classes]
        results = engine.predict(
            [image for _, image in opened], score_threshold, top_k=meta.max_detections, classes=ids
        )
    except EngineUnavailableError:
        raise
    except YolactError as error:
        if len(opened) == 1:
            _fail(opened[0][0], error, found)
            return
        for one in opened:
            yield from _results(engine, [one], score_threshold, classes, found)
        return
    found.seconds += time.perf_counter() - start
    yield from zip([record for record, _ in opened], results, strict=True)


def _fail(record: dict[str, Any], error: YolactError, found: Predictions) -> None:
    log.error("%s", error)
    found.failures[record["file_name"]] = str(error)


def score(
    truth: GroundTruth,
    found: Predictions,
    *,
    details: bool = False,
    confusion_score: float = SCORE_THRESHOLD,
    faster: bool = False,
) -> Evaluation:
    """Compare predictions with an annotation file.

    Args:
        truth: The annotation file.
        found: The predictions; of some classes only if their `category_ids` say so.
        details: Add precision-recall curves and the confusion matrix.
        confusion_score: The lowest score, 0..1, of detections in the confusion matrix.
        faster: Compute with faster-coco-eval; the numbers are the same.

    Raises:
        UsageError: `confusion_score` is out of range, with `details`.
        YolactError: faster-coco-eval is not installed.
    """
    library = coco_library(faster)
    if found.category_ids is not None:
        truth = truth.only(found.category_ids)
    with_mask, without = truth.with_masks()
    mask, mask_curves = None, None
    if without < len(truth.annotations) or not without:
        if without:
            log.warning(
                "%s of %s without a mask: counted for boxes; masks found in their boxes are ignored",
                *(counted(without, "annotation"), truth.path),
            )
        # Without boxes: pycocotools would use their areas as those of the masks.
        bare = [{key: value for key, value in entry.items() if key != "bbox"} for entry in found.masks]
        mask, mask_curves = metrics_of(truth, with_mask, bare, found.image_ids, "segm", library)
    else:
        log.warning("%s has no masks; only boxes are evaluated", truth.path)
    box, box_curves = metrics_of(truth, truth.annotations, found.boxes, found.image_ids, "bbox", library)
    extra = None
    if details:
        kind, expected, entries = (
            ("box", truth.annotations, found.boxes) if mask is None else ("mask", with_mask, found.masks)
        )
        confusion = confusion_matrix(
            expected, entries, found.image_ids, truth.class_names, kind=kind, score_threshold=confusion_score
        )
        extra = Details(box_curves, mask_curves, confusion)
    processed = len(found.image_ids) - len(found.failures)
    return Evaluation(
        box=box,
        mask=mask,
        images=len(found.image_ids),
        detections=len(found.boxes),
        failures=dict(found.failures),
        ms_per_image=1000 * found.seconds / max(1, processed),
        details=extra,
    )
