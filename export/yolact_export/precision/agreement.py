"""Detections of a reduced model against those of float32, and the average precision of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from yolact.evaluation.evaluate import Evaluation, evaluate
from yolact.evaluation.matching import match_instances, pairwise_iou
from yolact_runtime import Engine, Result

# Detections worth comparing, and how much lower a counterpart may score.
SCORE, SCORE_SLACK = 0.3, 0.15
MASK_IOU = 0.5
# Below these a reduced model is broken, not merely less exact.
LEAST_MATCHED, LEAST_AP = 0.5, 0.5
FEWEST = 10


@dataclass
class Agreement:
    """What was seen over all images.

    Attributes:
        images: Compared.
        expected: Detections of float32 that score at least `SCORE`.
        found: The same of the reduced model.
        matched: Of `expected`, those with a counterpart: same class, masks overlapping by `MASK_IOU`.
        extra: Of `found`, those without one.
        box_iou, mask_iou: Overlaps of the pairs.
        scores: Absolute differences of their scores.
    """

    images: int = 0
    expected: int = 0
    found: int = 0
    matched: int = 0
    extra: int = 0
    box_iou: list[float] = field(default_factory=list)
    mask_iou: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def problem(self) -> str:
        """One line where the two hardly find the same things, else ""."""
        share = self.matched / max(self.expected, 1)
        if self.expected < FEWEST or share >= LEAST_MATCHED:
            return ""
        return (
            f"only {self.matched} of {self.expected} detections of float32 are found again"
            f" ({LEAST_MATCHED:.0%} are required)"
        )


def compare_detections(reference: Engine, engine: Engine, images: Sequence[np.ndarray]) -> Agreement:
    """Run both engines on images (H, W, 3) uint8 BGR and look for each detection in the other's."""
    seen = Agreement()
    for image in track(images, "comparing", console=Console(stderr=True), transient=True):
        a, b = (side.predict([image], SCORE - SCORE_SLACK, 100)[0] for side in (reference, engine))
        boxes, masks = pairwise_iou(_corner_and_size(a), _corner_and_size(b)), pairwise_iou(a.rles, b.rles)
        same = (a.classes[:, None] == b.classes[None]) & (masks >= MASK_IOU)
        pairs = match_instances(np.where(same, masks + boxes, -np.inf))
        seen.images += 1
        seen.expected += int((a.scores >= SCORE).sum())
        seen.found += int((b.scores >= SCORE).sum())
        for row, column in pairs:
            if a.scores[row] >= SCORE:
                seen.matched += 1
                seen.box_iou.append(float(boxes[row, column]))
                seen.mask_iou.append(float(masks[row, column]))
                seen.scores.append(abs(float(a.scores[row] - b.scores[column])))
        taken = {column for _, column in pairs}
        seen.extra += sum(b.scores[column] >= SCORE and column not in taken for column in range(len(b)))
    return seen


def _corner_and_size(result: Result) -> np.ndarray:
    """(n, 4) float64 boxes x y width height, as pycocotools takes them."""
    boxes = result.boxes_float.astype(np.float64)
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def agreement_table(seen: Agreement, precision: str) -> Table:
    """The comparison as a table."""
    table = Table(title=f"Detections: {precision} against float32 on {seen.images} images")
    table.add_column("detections scoring 0.3 or more")
    table.add_column("", justify="right")
    table.add_row("float32", str(seen.expected))
    table.add_row(precision, str(seen.found))
    table.add_row("found again (same class, mask IoU 0.5)", str(seen.matched))
    table.add_row("extra", str(seen.extra))
    if seen.matched:
        table.add_row("mean box IoU of pairs", f"{np.mean(seen.box_iou):.4f}")
        table.add_row("mean mask IoU of pairs", f"{np.mean(seen.mask_iou):.4f}")
        table.add_row("mean score difference", f"{np.mean(seen.scores):.4f}")
    return table


@dataclass(frozen=True)
class PrecisionLoss:
    """Average precision of both on the same annotations."""

    reference: Evaluation
    reduced: Evaluation

    @property
    def problem(self) -> str:
        """One line where the reduced model has lost most of its AP, else ""."""
        for kind, expected, found in self.rows():
            if found < LEAST_AP * expected:
                return f"{kind} AP falls from {100 * expected:.2f} to {100 * found:.2f}"
        return ""

    def rows(self) -> list[tuple[str, float, float]]:
        """Kind, AP of float32 and AP of the reduced model (0..1), for each kind that has one."""
        pairs = [
            ("mask", self.reference.mask, self.reduced.mask),
            ("box", self.reference.box, self.reduced.box),
        ]
        return [
            (kind, a.ap, b.ap)
            for kind, a, b in pairs
            if a is not None and b is not None and a.ap is not None and b.ap is not None
        ]


def compare_precision(reference: Engine, engine: Engine, images: Path, annotations: Path) -> PrecisionLoss:
    """Evaluate both engines on a COCO annotation file."""
    return PrecisionLoss(*(evaluate(side, images, annotations) for side in (reference, engine)))


def precision_table(loss: PrecisionLoss, precision: str) -> Table:
    """AP side by side, in percent."""
    table = Table(title=f"COCO AP on {loss.reference.images} images, percent")
    for column in ("", "float32", precision, "difference"):
        table.add_column(column, justify="right" if column else "left")
    for kind, expected, found in loss.rows():
        table.add_row(
            f"{kind} AP", f"{100 * expected:.2f}", f"{100 * found:.2f}", f"{100 * (found - expected):+.2f}"
        )
    return table
