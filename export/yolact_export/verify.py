"""Proof that an exported file computes what the checkpoint computes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from yolact.engine import TorchEngine
from yolact.evaluation.matching import match_instances
from yolact_runtime.detections import Detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.errors import YolactError
from yolact_runtime.masks import box_masks, full_masks
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.sources.images import list_images, read_image

log = logging.getLogger(__name__)

MADE_IMAGES = 4
MASK_SIZE = 480, 640


@dataclass(frozen=True)
class Tolerances:
    """How far float32 arithmetic in another order may lie off."""

    score: float = 1e-4
    box: float = 1e-4
    mask_iou: float = 0.999
    tensor: float = 1e-3


@dataclass
class Comparison:
    """What was seen over all images.

    Attributes:
        images: Compared.
        expected, found: Detections of the reference and of the file.
        matched: Pairs of the same class and box.
        differences: Largest absolute difference of each output.
        scales: Largest absolute value of each output in the reference.
        mask_iou: Smallest overlap of the masks of a pair.
        flips: Unpaired detections that lie within the tolerance of a threshold, so that either is right.
        problems: What was out of tolerance, one line each.
    """

    images: int = 0
    expected: int = 0
    found: int = 0
    matched: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    mask_iou: float = 1.0
    flips: int = 0
    problems: list[str] = field(default_factory=list)

    def note(self, name: str, expected: np.ndarray, found: np.ndarray) -> float:
        """Keep the largest difference of an output; returns this one's."""
        difference = float(np.abs(expected - found).max(initial=0))
        self.differences[name] = max(self.differences.get(name, 0.0), difference)
        self.scales[name] = max(self.scales.get(name, 0.0), float(np.abs(expected).max(initial=0)))
        return difference


def compare(
    reference: Engine, engine: Engine, images: Sequence[np.ndarray], tolerances: Tolerances | None = None
) -> Comparison:
    """Run both engines on the same input and compare what they return, output by output.

    Args:
        reference: Right by definition.
        engine: To be checked; its input type and batch limit are used for both.
        images: (H, W, 3) uint8 BGR.
        tolerances: Beyond these a difference is a problem.
    """
    limits = tolerances or Tolerances()
    seen = Comparison()
    meta = engine.metadata
    step = meta.max_batch
    for start in track(
        range(0, len(images), step), "verifying", console=Console(stderr=True), transient=True
    ):
        chunk = images[start : start + step]
        batch = resize_batch(chunk, meta.input_size, meta.input_dtype)
        if len(chunk) < meta.min_batch:
            batch = np.concatenate([batch, np.repeat(batch[-1:], meta.min_batch - len(chunk), axis=0)])
        expected, found = reference.detect(batch), engine.detect(batch)
        for index in range(len(chunk)):
            seen.images += 1
            _compare_image(expected, found, index, seen, limits)
    for name, difference in seen.differences.items():
        allowed = {"scores": limits.score, "mask_scores": limits.score, "boxes": limits.box}.get(
            name, limits.tensor * max(seen.scales[name], 1.0)
        )
        if not difference <= allowed:
            seen.problems.append(f"{name} differ by {difference:.2e}; allowed {allowed:.2e}")
    if seen.mask_iou < limits.mask_iou:
        seen.problems.append(f"masks overlap by only {seen.mask_iou:.5f}; allowed {limits.mask_iou}")
    return seen


def _compare_image(
    expected: Detections, found: Detections, index: int, seen: Comparison, limits: Tolerances
) -> None:
    a, b = int(expected.count[index]), int(found.count[index])
    seen.expected += a
    seen.found += b
    seen.note("prototypes", expected.prototypes[index], found.prototypes[index])
    pairs = _pair(expected, found, index, limits)
    seen.matched += len(pairs)
    rows, others = (np.array(side, np.int64) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    for name in ("boxes", "scores", "mask_scores", "coefficients"):
        seen.note(name, getattr(expected, name)[index][rows], getattr(found, name)[index][others])
    if len(pairs):
        size = MASK_SIZE
        masks = [
            full_masks(
                box_masks(side.coefficients[index][r], side.prototypes[index], side.boxes[index][r], *size),
                *size,
            )
            for side, r in ((expected, rows), (found, others))
        ]
        union = (masks[0] | masks[1]).sum(axis=(1, 2))
        shared = (masks[0] & masks[1]).sum(axis=(1, 2))
        overlap = np.where(union, shared / np.maximum(union, 1), 1.0)
        # One pixel more or less of a mask of a few hundred is float32 noise, not a difference.
        overlap = np.where(union - shared <= 1, 1.0, overlap)
        seen.mask_iou = min(seen.mask_iou, float(overlap.min()))
    for side, count, used in ((expected, a, rows), (found, b, others)):
        for row in sorted(set(range(count)) - set(np.asarray(used).tolist())):
            _explain(expected, found, side, index, row, seen, limits)


def _pair(expected: Detections, found: Detections, index: int, limits: Tolerances) -> list[tuple[int, int]]:
    """Rows of both that are the same detection: same class, box and score within ten tolerances."""
    a, b = int(expected.count[index]), int(found.count[index])
    if not a or not b:
        return []

    def apart(name: str) -> np.ndarray:
        left, right = getattr(expected, name)[index, :a, None], getattr(found, name)[index, None, :b]
        return np.abs(left - right).reshape(a, b, -1).max(axis=2)  # (a, b)

    boxes, scores = apart("boxes") / limits.box, apart("scores") / limits.score
    same = (apart("classes") == 0) & (boxes <= 10) & (scores <= 10)
    # Neighbouring priors may give nearly the same box; coefficients tell them apart.
    distance = boxes + scores + apart("coefficients") / limits.tensor
    return match_instances(np.where(same, -distance, -np.inf), best_first=True)


def _explain(
    expected: Detections,
    found: Detections,
    side: Detections,
    index: int,
    row: int,
    seen: Comparison,
    limits: Tolerances,
) -> None:
    """Sort an unpaired detection: at the cut of the best K a tie within tolerance may fall either way."""
    k = expected.scores.shape[1]
    full = int(expected.count[index]) == k or int(found.count[index]) == k
    last = max(expected.scores[index, -1], found.scores[index, -1])
    score = float(side.scores[index, row])
    if full and score <= last + limits.score:
        seen.flips += 1
        return
    who = "missing" if side is expected else "extra"
    seen.problems.append(
        f"image {seen.images - 1}: {who} detection of class {side.classes[index, row]}, score {score:.4f}"
    )


def report(seen: Comparison, title: str = "ONNX Runtime against PyTorch") -> Table:
    """The comparison as a table."""
    table = Table(title=f"{title} on {seen.images} images")
    for column in ("output", "largest value", "largest difference"):
        table.add_column(column, justify="left" if column == "output" else "right")
    for name in sorted(seen.differences):
        table.add_row(name, f"{seen.scales[name]:.4g}", f"{seen.differences[name]:.2e}")
    table.add_row("masks", "", f"smallest IoU {seen.mask_iou:.5f}")
    flips = f", {seen.flips} tied at the cut" if seen.flips else ""
    table.add_row("detections", f"{seen.expected}", f"{seen.matched} matched of {seen.found}{flips}")
    return table


def verification_images(folder: Path | None) -> list[np.ndarray]:
    """Images to verify on: all readable ones of `folder`, or a few made ones.

    Raises:
        YolactError: the folder holds no readable image.
    """
    if folder is None:
        return list(_made_images())
    images = []
    for path in list_images([str(folder)]):
        try:
            images.append(read_image(path))
        except YolactError as error:
            log.warning("%s; skipped", error)
    if not images:
        raise YolactError(f"--verify {folder}: no readable image in it")
    return images


def _made_images() -> Iterator[np.ndarray]:
    """Noise of several scales at once, the same every time.

    Nowhere flat: there, neighbouring priors would tie, and rounding would choose between them.
    """
    rng = np.random.default_rng(0)
    for _ in range(MADE_IMAGES):
        image = np.zeros((480, 640, 3), np.float32)
        for block in (2, 8, 32, 128):
            cells = rng.uniform(-1, 1, (-(-480 // block), -(-640 // block), 3)).astype(np.float32)
            image += cv2.resize(cells, (640, 480), interpolation=cv2.INTER_CUBIC)
        yield np.clip(128 + 64 * image, 0, 255).astype(np.uint8)


def reference_engine(weights: str | Path, config: str | None, input_type: str) -> TorchEngine:
    """The checkpoint in PyTorch on the CPU, given the same rounding of its input as the exported file."""
    return TorchEngine(weights, config=config, device="cpu", input_dtype=input_type)
