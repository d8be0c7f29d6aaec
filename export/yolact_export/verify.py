"""Verifies that an exported file computes what the checkpoint computes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from yolact.config import Config
from yolact.engine import TorchEngine
from yolact.evaluation.matching import match_instances
from yolact_export.stages import Stages, raise_scores, stages_of
from yolact_runtime.commandline import Table, track
from yolact_runtime.detections import Detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.masks import box_masks, full_masks
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.sources.images import list_images, read_image

log = logging.getLogger(__name__)

SYNTHETIC_IMAGES = 4
# The heads of this many images are compared; the detections of all are.
HEAD_IMAGES = 2
MASK_SIZE = 480, 640
# Masks of an image in memory at a time.
_MASKS = 100


@dataclass(frozen=True)
class Tolerances:
    """Largest differences that another order of float32 operations may cause."""

    score: float = 1e-4
    box: float = 1e-4  # of coordinates, 0..1
    mask_iou: float = 0.999  # the least
    head: float = 5e-3  # of raw heads, at all priors, relative as `tensor`
    tensor: float = 1e-3  # of other outputs, relative to the largest value if that exceeds 1


@dataclass
class Comparison:
    """Differences between two engines over all images.

    Attributes:
        images: Number of images compared.
        expected, found: Number of detections of the reference and of the engine.
        matched: Number of pairs with the same class and box.
        prepared: Number of pairs in detections from prepared heads, if none were matched in the images.
        differences: Largest absolute difference of each output and head; NaN if a value is not finite.
        scales: Largest absolute value of each output in the reference.
        mask_iou: Smallest IoU of the masks of a pair.
        flips: Unmatched detections that rounding decides: within the tolerance of the cut at the best K, or
            of an image in which both detect the same from the same heads.
        problems: One line for everything out of tolerance.
    """

    images: int = 0
    expected: int = 0
    found: int = 0
    matched: int = 0
    prepared: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    mask_iou: float = 1.0
    flips: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, expected: np.ndarray, found: np.ndarray) -> None:
        """Include two arrays of one shape in the largest difference of the output `name`."""
        with np.errstate(invalid="ignore"):
            difference = np.abs(expected - found).max(initial=0)
        # np.maximum keeps NaN; max() would lose it.
        self.differences[name] = float(np.maximum(self.differences.get(name, 0.0), difference))
        self.scales[name] = max(self.scales.get(name, 0.0), float(np.abs(expected).max(initial=0)))


def reference_engine(
    weights: Path, config: Config | None, input_type: str, class_names: str | None = None
) -> TorchEngine:
    """The checkpoint that an export is compared with.

    Args:
        weights: The checkpoint.
        config: That of the exported network; None for that of the file.
        input_type: Of the exported file, so that both round their input in the same way.
        class_names: Its class names, if the file does not name them.
    """
    return TorchEngine(weights, config=config, device="cpu", input_dtype=input_type, class_names=class_names)


def compare(
    reference: Engine, engine: Engine, images: Sequence[np.ndarray], tolerances: Tolerances | None = None
) -> Comparison:
    """Run both engines on the same input and compare their outputs one by one.

    The raw heads are compared as well if both engines are checkpoints, ONNX files or OpenVINO models. If no
    detection of the images can be compared, detection is, on heads that are prepared to score above the
    threshold. Having compared nothing is a problem.

    Args:
        reference: The engine that is right by definition.
        engine: The engine to verify. Its input type and batch limit are used for both.
        images: (H, W, 3) uint8 BGR.
        tolerances: Larger differences are problems.
    """
    limits = tolerances or Tolerances()
    seen = Comparison()
    meta = engine.metadata
    stages = stages_of(reference, engine)
    starts = range(0, len(images), meta.max_batch)
    for start in track(starts, "verifying"):
        chunk = images[start : start + meta.max_batch]
        batch = resize_batch(chunk, meta.input_size, meta.input_dtype)
        if len(chunk) < meta.min_batch:
            batch = np.concatenate([batch, np.repeat(batch[-1:], meta.min_batch - len(chunk), axis=0)])
        expected, found = reference.detect(batch), engine.detect(batch)
        alone: list[tuple[int, list[str]]] = []  # images with unmatched detections
        for index in range(len(chunk)):
            seen.images += 1
            if unmatched := _compare_image(expected, found, index, seen, limits):
                alone.append((index, unmatched))
        if stages and (start < HEAD_IMAGES or alone):
            _compare_heads(stages, batch, seen)
        for index, unmatched in alone:
            if stages and _same_detection(stages, batch, found, index, limits):
                seen.flips += len(unmatched)
            else:
                seen.problems += unmatched
    threshold = reference.metadata.score_threshold
    if not seen.matched and stages and threshold < 1:
        _compare_prepared(stages, batch, threshold, seen, limits)
    for name, difference in seen.differences.items():
        allowed = {"scores": limits.score, "mask_scores": limits.score, "boxes": limits.box}.get(
            name, (limits.head if name.startswith("head ") else limits.tensor) * max(seen.scales[name], 1.0)
        )
        if np.isnan(difference):
            seen.problems.append(f"{name} are not finite")
        elif difference > allowed:
            seen.problems.append(f"{name} differ by {difference:.2e}; allowed {allowed:.2e}")
    if seen.mask_iou < limits.mask_iou:
        seen.problems.append(f"masks overlap by only {seen.mask_iou:.5f}; allowed {limits.mask_iou}")
    if not seen.matched and not seen.prepared and not seen.problems:
        seen.problems.append(
            f"no detection was compared: none scores above {threshold} in {counted(seen.images, 'image')}"
        )
    return seen


def _compare_heads(stages: tuple[Stages, Stages], batch: np.ndarray, seen: Comparison) -> None:
    """Add the differences of the raw heads of a batch to `seen`."""
    expected, found = (side.network(batch) for side in stages)
    for name, value in expected.items():
        # In the graph of a file, coefficients are a head and an output.
        seen.add(f"head {name}", value, found[name])


def _same_detection(
    stages: tuple[Stages, Stages], batch: np.ndarray, found: Detections, index: int, limits: Tolerances
) -> bool:
    """Whether the reference detects in image `index` what the engine found, from the engine's heads.

    Then a detection that only one of them has is due to the heads. As these agree within their tolerance, its
    IoU with a better one, or its score, was so close to the threshold that rounding decided.
    """
    seen = Comparison()
    again = stages[0].detection(stages[1].network(batch))
    return not _compare_image(again, found, index, seen, limits)


def _compare_prepared(
    stages: tuple[Stages, Stages], batch: np.ndarray, threshold: float, seen: Comparison, limits: Tolerances
) -> None:
    """Add the differences in what both detect from the same heads, raised above `threshold`, to `seen`."""
    heads = raise_scores(stages[0].network(batch), threshold)
    expected, found = (side.detection(heads) for side in stages)
    prepared = Comparison(differences=seen.differences, scales=seen.scales)
    for index in range(len(batch)):
        prepared.problems += _compare_image(expected, found, index, prepared, limits)
    seen.prepared, seen.mask_iou = prepared.matched, min(seen.mask_iou, prepared.mask_iou)
    seen.problems += [f"prepared {problem}" for problem in prepared.problems]


def _compare_image(
    expected: Detections, found: Detections, index: int, seen: Comparison, limits: Tolerances
) -> list[str]:
    """Add the differences in image `index` of a batch to `seen`; one line for each unmatched detection."""
    a, b = int(expected.count[index]), int(found.count[index])
    seen.expected += a
    seen.found += b
    seen.add("prototypes", expected.prototypes[index], found.prototypes[index])
    pairs = _pair(expected, found, index, limits)
    seen.matched += len(pairs)
    rows, others = ([pair[side] for pair in pairs] for side in (0, 1))
    for name in ("boxes", "scores", "mask_scores", "coefficients"):
        seen.add(name, getattr(expected, name)[index][rows], getattr(found, name)[index][others])
    for start in range(0, len(pairs), _MASKS):
        masks = []
        for side, used in ((expected, rows), (found, others)):
            kept = used[start : start + _MASKS]
            coefficients, boxes = side.coefficients[index][kept], side.boxes[index][kept]
            regions = box_masks(coefficients, side.prototypes[index], boxes, *MASK_SIZE)
            masks.append(full_masks(regions, *MASK_SIZE))
        first, second = masks
        union, shared = (first | second).sum(axis=(1, 2)), (first & second).sum(axis=(1, 2))
        # One pixel more or less of a mask of a few hundred is float32 noise, not a difference.
        iou = np.where(union - shared <= 1, 1.0, shared / np.maximum(union, 1))
        seen.mask_iou = min(seen.mask_iou, float(iou.min()))
    # Within the tolerance of the cut at the best K, rounding decides which detections are left out.
    last = max(expected.scores[index, -1], found.scores[index, -1])
    cut = last + limits.score if expected.scores.shape[1] in (a, b) else -np.inf
    unmatched = []
    for side, kind, count, used in ((expected, "missing", a, rows), (found, "extra", b, others)):
        for row in sorted(set(range(count)) - set(used)):
            score = float(side.scores[index, row])
            if score <= cut:
                seen.flips += 1
                continue
            label = side.classes[index, row]
            unmatched.append(f"image {seen.images - 1}: {kind} detection of class {label}, score {score:.4f}")
    return unmatched


def _pair(expected: Detections, found: Detections, index: int, limits: Tolerances) -> list[tuple[int, int]]:
    """Rows of the same detection in both: same class, box and score within ten tolerances."""
    a, b = int(expected.count[index]), int(found.count[index])
    if not a or not b:
        return []

    classes = expected.classes[index, :a, None] == found.classes[index, None, :b]  # (a, b)
    scores = np.abs(expected.scores[index, :a, None] - found.scores[index, None, :b])
    left, right = np.nonzero(classes & (scores <= 10 * limits.score))

    def difference(name: str) -> np.ndarray:
        apart = getattr(expected, name)[index, left] - getattr(found, name)[index, right]
        return np.abs(apart).max(axis=1)  # of each candidate pair

    boxes = difference("boxes") / limits.box
    # Neighbouring priors may give nearly the same box; their coefficients differ.
    distance = boxes + scores[left, right] / limits.score + difference("coefficients") / limits.tensor
    near = boxes <= 10
    similarity = np.full((a, b), -np.inf)
    similarity[left[near], right[near]] = -distance[near]
    return match_instances(similarity, best_first=True)


def check(reference: Engine, engine: Engine, images: Sequence[np.ndarray], title: str) -> None:
    """Compare two engines, print the differences, and warn if nothing was detected in the images.

    Args:
        reference: The engine that is right by definition.
        engine: The engine to verify.
        images: (H, W, 3) uint8 BGR.
        title: Of the table: which two are compared.

    Raises:
        YolactError: they differ, or nothing can be compared.
    """
    seen = compare(reference, engine, images)
    comparison_table(seen, title).show()
    if problems := seen.problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise YolactError(
            f"nothing was written: verification failed: {problems[0]}{more}; verify on images in which the"
            " model finds something (--verify DIR), or export without it (--no-verify)"
        )
    if not seen.matched:
        log.warning(
            "nothing scores above %s in the %d images to verify on: raw heads were compared, and detection on"
            " prepared heads; --verify DIR compares what is found in images of yours",
            reference.metadata.score_threshold, seen.images,
        )  # fmt: skip


def comparison_table(seen: Comparison, title: str = "ONNX Runtime against PyTorch") -> Table:
    """The largest differences, one row for each output."""
    rows = [
        [name, f"{seen.scales[name]:.4g}", f"{seen.differences[name]:.2e}"]
        for name in sorted(seen.differences)
    ]
    rows.append(["masks", "", f"smallest IoU {seen.mask_iou:.5f}"])
    flips = f", {seen.flips} decided by rounding" if seen.flips else ""
    rows.append(["detections", f"{seen.expected}", f"{seen.matched} matched of {seen.found}{flips}"])
    if not seen.matched:
        rows.append(["detections of prepared heads", "", f"{seen.prepared} matched"])
    columns = ("output", "largest value", "largest difference")
    return Table(f"{title} on {counted(seen.images, 'image')}", columns, rows)


def verification_images(folder: Path | None) -> list[np.ndarray]:
    """(H, W, 3) uint8 BGR images to verify on: all readable ones of `folder`, or a few synthetic ones.

    Raises:
        YolactError: the folder holds no readable image.
    """
    if folder is None:
        return list(_synthetic_images())
    images = []
    for path in list_images([folder]):
        try:
            images.append(read_image(path))
        except YolactError as error:
            log.warning("%s; skipped", error)
    if not images:
        raise YolactError(f"--verify {folder}: no readable image")
    return images


def _synthetic_images() -> Iterator[np.ndarray]:
    """Noise of several scales at once, always the same.

    No region is flat: neighbouring priors would tie there, and rounding would choose between them.
    """
    rng = np.random.default_rng(0)
    for _ in range(SYNTHETIC_IMAGES):
        image = np.zeros((480, 640, 3), np.float32)
        for block in (2, 8, 32, 128):
            cells = rng.uniform(-1, 1, (-(-480 // block), -(-640 // block), 3)).astype(np.float32)
            image += cv2.resize(cells, (640, 480), interpolation=cv2.INTER_CUBIC)
        yield np.clip(128 + 64 * image, 0, 255).astype(np.uint8)
