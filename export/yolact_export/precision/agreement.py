"""Compares the detections and the average precision (AP) of a reduced model with those of float32."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from yolact.evaluation.evaluate import Evaluation
from yolact.evaluation.matching import Instances, pair_instances
from yolact_export.onnx_graph import HEADS
from yolact_export.precision.calibration import batches
from yolact_export.precision.measure import Error, add_heads, worst
from yolact_export.stages import stages_of
from yolact_runtime import Engine, Result
from yolact_runtime.commandline import Table, track
from yolact_runtime.errors import counted

log = logging.getLogger(__name__)

# Least score of the detections to compare, and how much lower their matches may score.
SCORE, SCORE_SLACK = 0.3, 0.15
MASK_IOU = 0.5
# Shares of the detections and of the AP below which a reduced model counts as broken.
MIN_MATCHED, MIN_AP = 0.5, 0.5
# With fewer detections the heads decide: relative error above which a reduced model counts as broken.
MIN_DETECTIONS = 10
MAX_HEAD_ERROR = 0.5
# The heads of this many images are compared.
_HEAD_IMAGES = 4


@dataclass
class Agreement:
    """How the detections of two engines match over all images.

    Attributes:
        images: Number of images compared.
        expected: Number of detections of float32 that score at least `SCORE`.
        found: The same of the reduced model.
        matched: Those of `expected` with a match: same class, mask IoU of at least `MASK_IOU`.
        extra: Those of `found` without a match.
        box_iou, mask_iou: IoU of each pair, 0..1.
        scores: Absolute difference of the scores of each pair.
        heads: Error of each head; None if there are enough detections, or the engines do not return heads.
    """

    images: int = 0
    expected: int = 0
    found: int = 0
    matched: int = 0
    extra: int = 0
    box_iou: list[float] = field(default_factory=list)
    mask_iou: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    heads: dict[str, Error] | None = None

    @property
    def too_few(self) -> bool:
        """Whether there are too few detections to decide by."""
        return self.expected < MIN_DETECTIONS

    @property
    def problem(self) -> str:
        """One line if the detections, or the heads where these are few, do not match, else ""."""
        required = f"({MIN_MATCHED:.0%} are required)"
        if self.found >= MIN_DETECTIONS and self.found - self.extra < MIN_MATCHED * self.found:
            return f"{self.extra} of its {self.found} detections are not in float32's {required}"
        if not self.too_few:
            enough = self.matched >= MIN_MATCHED * self.expected
            texts = f"only {self.matched} of {self.expected} detections of float32 are matched {required}"
            return "" if enough else texts
        if self.heads is None:
            return f"nothing can be compared: float32 has {counted(self.expected, 'detection')}"
        error = worst(self.heads)
        return "" if error <= MAX_HEAD_ERROR else f"the heads of the network differ by {error:.0%}"


def compare_detections(reference: Engine, engine: Engine, images: Sequence[np.ndarray]) -> Agreement:
    """Run both engines on (H, W, 3) uint8 BGR images and match their detections."""
    seen = Agreement()
    for image in track(images, "comparing"):
        a, b = (side.predict([image], SCORE - SCORE_SLACK, 100)[0] for side in (reference, engine))
        pairs = pair_instances(_instances(a), _instances(b), MASK_IOU)
        seen.images += 1
        seen.expected += int((a.scores >= SCORE).sum())
        seen.found += int((b.scores >= SCORE).sum())
        for pair in pairs:
            if a.scores[pair.row] >= SCORE:
                seen.matched += 1
                seen.box_iou.append(pair.box_iou)
                seen.mask_iou.append(pair.mask_iou)
                seen.scores.append(abs(float(a.scores[pair.row] - b.scores[pair.column])))
        taken = {pair.column for pair in pairs}
        seen.extra += sum(b.scores[column] >= SCORE and column not in taken for column in range(len(b)))
    if seen.too_few and (stages := stages_of(reference, engine)):
        seen.heads = {name: Error() for name in HEADS}
        for batch in batches(images[:_HEAD_IMAGES], engine.metadata):
            expected, found = (side.network(batch) for side in stages)
            add_heads(seen.heads, expected, found, reference.metadata.score_threshold)
        log.warning(
            "only %d detections score %s or more in the %d images to compare on: the heads were"
            " compared instead; --verify DIR compares what is found in images of yours",
            seen.expected, SCORE, seen.images,
        )  # fmt: skip
    return seen


def _instances(result: Result) -> Instances:
    boxes = result.boxes_float.astype(np.float64)
    return Instances(result.classes, np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]), result.rles)


def agreement_table(seen: Agreement, precision: str) -> Table:
    """Numbers of matched detections, and how closely the pairs agree."""
    title = f"Detections: {precision} against float32 on {seen.images} images"
    least = f"{SCORE - SCORE_SLACK:g}"
    rows = [
        ["float32", str(seen.expected)],
        [precision, str(seen.found)],
        [
            f"of float32, matched by one of {least} or more (same class, mask IoU {MASK_IOU:g})",
            str(seen.matched),
        ],
        [f"of {precision}, matched by none of {least} or more", str(seen.extra)],
    ]
    if seen.matched:
        rows.append(["mean box IoU of pairs", f"{np.mean(seen.box_iou):.4f}"])
        rows.append(["mean mask IoU of pairs", f"{np.mean(seen.mask_iou):.4f}"])
        rows.append(["mean score difference", f"{np.mean(seen.scores):.4f}"])
    if seen.heads is not None:
        rows.append(["relative error of the heads", f"{worst(seen.heads):.2%}"])
    return Table(title, (f"detections scoring {SCORE:g} or more", ""), rows)


@dataclass(frozen=True)
class PrecisionLoss:
    """Average precision of float32 (`reference`) and of the reduced model on the same annotations."""

    reference: Evaluation
    reduced: Evaluation

    @property
    def problem(self) -> str:
        """One line if the reduced model has lost most of its AP, or there is none to lose, else ""."""
        if not any(expected for _, expected, _ in self.rows()):
            return "float32 has no AP to compare with: it finds none of the annotated objects"
        for kind, expected, found in self.rows():
            if found < MIN_AP * expected:
                return f"{kind} AP falls from {100 * expected:.2f} to {100 * found:.2f}"
        return ""

    def rows(self) -> list[tuple[str, float, float]]:
        """(kind, AP of float32, AP of the reduced model), 0..1, for each kind that was evaluated."""
        found = []
        for kind in ("mask", "box"):
            results = [getattr(side, kind) for side in (self.reference, self.reduced)]
            if all(result is not None and result.ap is not None for result in results):
                found.append((kind, *(result.ap for result in results)))
        return found


def precision_table(loss: PrecisionLoss, precision: str) -> Table:
    """AP of both in percent, and the difference."""
    rows = []
    for kind, expected, found in loss.rows():
        a, b = 100 * expected, 100 * found
        rows.append([f"{kind} AP", f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}"])
    title = f"COCO AP on {loss.reference.images} images, percent"
    return Table(title, ("", "float32", precision, "difference"), rows)
