"""What a dataset offers to learn, looked at before the first step."""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np

from yolact.data.annotations import AnnotationFile
from yolact.data.reader.consistency import CROWD, EXAMPLE, NO_AREA, NO_MASK, OUTSIDE, STATUS
from yolact.data.reader.findings import Level
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.typed import first_few

log = logging.getLogger(__name__)

_REMEDIES = {
    CROWD: "crowd regions (iscrowd 1) are ignored; if they are single objects, as CVAT exports what was drawn"
    " with its brush, give --set dataset.crowd_as_instances=true",
    NO_MASK: "boxes alone are not enough: objects need a segmentation",
    NO_AREA: "yolact-data fix computes boxes from masks",
    OUTSIDE: "are the annotations those of other images?",
}


def count_examples(
    file: AnnotationFile, images: Collection[int] | None = None, crowd_as_instances: bool = False
) -> dict[int, np.ndarray]:
    """How many annotations of each category have each `STATUS`: (5,) int64 by category id.

    Args:
        file: The annotations.
        images: Ids of the images that count; None for all.
        crowd_as_instances: Count crowd regions with a mask as examples.
    """
    rows = {category["id"]: row for row, category in enumerate(file.categories)}
    labels = np.array([rows[entry["category_id"]] for entry in file.annotations], np.int64)
    status = file.status.astype(np.int64)
    if crowd_as_instances:
        status[status == CROWD] = EXAMPLE
    if images is not None:
        chosen = np.array([entry["image_id"] in images for entry in file.annotations], bool)
        labels, status = labels[chosen], status[chosen]
    counts = np.bincount(labels * len(STATUS) + status, minlength=len(rows) * len(STATUS))
    return dict(zip(rows, counts.reshape(-1, len(STATUS)), strict=True))


def require_examples(
    file: AnnotationFile, images: Collection[int] | None = None, crowd_as_instances: bool = False
) -> None:
    """Warn about classes without an example to learn from, with the reason.

    Args:
        file, images, crowd_as_instances: As for `count_examples`.

    Raises:
        YolactError: no class has an example; says why and what to do.
    """
    if why := why_nothing(file, images, crowd_as_instances):
        raise YolactError(f"{file.path}: {why}")
    counts = count_examples(file, images, crowd_as_instances)
    names = {category["id"]: category["name"] for category in file.categories}
    without = [f"{names[number]} ({_reasons(row)})" for number, row in counts.items() if not row[EXAMPLE]]
    if without:
        log.warning(
            "%s: %d of %s have nothing to learn from: %s",
            *(file.path, len(without), counted(len(counts), "class", "classes"), first_few(without, 8)),
        )


def why_nothing(
    file: AnnotationFile, images: Collection[int] | None = None, crowd_as_instances: bool = False
) -> str | None:
    """Why there is nothing to learn, and what to do; None if there is something.

    Args:
        file, images, crowd_as_instances: As for `count_examples`.
    """
    counts = count_examples(file, images, crowd_as_instances)
    total = np.sum(list(counts.values()), axis=0) if counts else np.zeros(len(STATUS), np.int64)
    if total[EXAMPLE]:
        return None
    where = (
        "" if images is None or len(images) == len(file.images) else f" in {counted(len(images), 'image')}"
    )
    main = int(np.argmax(total))
    remedy = f"; {_REMEDIES[main]}" if total[main] else _lost(file)
    return f"nothing to learn{where}: {_reasons(total)}{remedy}"


def _reasons(row: np.ndarray) -> str:
    """Why annotations are no examples, with their numbers: `3 annotations: 2 crowd, 1 no area`."""
    reasons = ", ".join(f"{number} {STATUS[i]}" for i, number in enumerate(row.tolist()) if number)
    return f"{counted(int(row.sum()), 'annotation')}: {reasons}" if reasons else "no annotations"


def _lost(file: AnnotationFile) -> str:
    """What happened to the annotations of a file that has none left."""
    kind: tuple[Level, str] = ("warning", "unknown image")
    if not file.findings.counts[kind]:
        return ""
    lost = counted(file.findings.counts[kind], "annotation")
    return f"; {lost} of images that it does not list ({file.findings.first(*kind).message})"
