"""Sizes and shapes of priors that fit the boxes of a dataset: k-means, and a search from there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.optimize import minimize

from yolact.config import AugmentConfig, ModelConfig
from yolact.data.annotations import read_annotations, read_classes
from yolact.data.augment import Augmenter
from yolact.data.geometry import Geometry
from yolact.data.reader.findings import Findings
from yolact.data.reader.image_files import find_images
from yolact.matching import MIN_SIDE
from yolact.model.priors import pyramid_levels
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.priors import make_priors
from yolact_runtime.sources.images import read_image

# Boxes that k-means looks at; more change its result by less than its rounding.
_SAMPLE = 100_000
# Boxes that the search looks at in each step.
_SEARCHED = 5_000
# How far it may go from where it starts, as the logarithm of a factor, and how many rounds it has.
_REACH = 1.5
_ROUNDS = 4
# Starts of k-means, of which the best is taken.
_STARTS = 8
# The most scales of a level, and the most aspect ratios: the search takes minutes with so many.
_MOST = 9
# Significant digits of a scale or an aspect ratio.
_DIGITS = 3


@dataclass(frozen=True)
class Fit:
    """How well priors fit boxes.

    Attributes:
        overlaps: (n,) float64, the highest IoU of each box with a prior.
        areas: (n,) float64, of each box in pixels of the network's input.
    """

    overlaps: np.ndarray
    areas: np.ndarray

    def matched(self, iou: float, low: float = 0, high: float = np.inf) -> float:
        """Share of the boxes with an area of `low` to `high` pixels that overlap a prior by `iou` or more."""
        some = (self.areas >= low) & (self.areas < high)
        return float((self.overlaps[some] >= iou).mean()) if some.any() else float("nan")


def network_boxes(
    annotations: str | Path,
    model: ModelConfig,
    images: str | Path | None = None,
    augment: AugmentConfig | None = None,
    epochs: int = 1,
    seed: int = 0,
    classes: Sequence[str | int] = (),
    crowd_as_instances: bool = False,
) -> np.ndarray:
    """The boxes of a COCO annotation file that training would match with priors, as the network sees them.

    Args:
        annotations: The file.
        model: Its input size is used.
        images: Folder of the images, for sizes that the file does not say.
        augment: Crops, expansions and turns to apply; None for none.
        epochs: How many times each image is augmented.
        seed: Of the augmentation.
        classes: Names or ids of the classes whose boxes count; empty for all.
        crowd_as_instances: Whether crowds that have a mask count; others never do.

    Returns:
        (n, 4) float64: x1 y1 x2 y2 relative to the network's input, 0..1, each side more than 0.

    Raises:
        YolactError: the file cannot be used, or does not say the size of an image and `images` is None.
    """
    file = read_annotations(annotations)
    if classes:
        file = file.only(read_classes(annotations, classes).category_ids)
    paths = {}
    if images is not None and any(None in (image["height"], image["width"]) for image in file.images):
        findings = Findings()
        paths = find_images(file.images, Path(images), findings)
        findings.raise_errors(file.path)
    by_image: dict[int, list[list[float]]] = {}
    for annotation in file.annotations:
        solid = crowd_as_instances or not annotation["iscrowd"]
        if solid and annotation["segmentation"] is not None:
            by_image.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    augmenter = Augmenter(augment, model, seed) if augment is not None else None
    found = [np.zeros((0, 4))]
    for index, image in enumerate(file.images):
        if image["id"] not in by_image:
            continue
        height, width = image["height"], image["width"]
        if height is None or width is None:
            if images is None:
                raise YolactError(
                    f"{file.path}: image {image['id']} ({image['file_name']}) has no height and width; name"
                    " the folder of the images: --images DIR"
                )
            height, width = read_image(paths[image["id"]]).shape[:2]
        corners = np.array(by_image[image["id"]], np.float64)
        corners[:, 2:] += corners[:, :2]
        corners = corners.clip(0, np.array([width, height, width, height]))
        for epoch in range(epochs):
            if augmenter is None:
                found.append(Geometry.whole(height, width).boxes(corners).astype(np.float64))
                continue
            crowd = np.zeros(len(corners), bool)
            _, geometry = augmenter.draw(epoch, index, corners, crowd, height, width)
            relative = geometry.boxes(corners)
            large = (relative[:, 2:] - relative[:, :2] > augmenter.config.min_box_side).all(axis=1)
            found.append(relative[geometry.keeps(corners) & large].astype(np.float64))
    boxes = np.concatenate(found)
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    if not len(boxes):
        raise YolactError(f"{file.path}: it has no instance with a box and a mask to fit priors to")
    return boxes


def fit_priors(
    boxes: np.ndarray, model: ModelConfig, scales: int = 0, ratios: int = 0, iou: float = 0.5, seed: int = 0
) -> ModelConfig:
    """The model with priors that fit boxes.

    k-means on the logarithms of sizes and of aspect ratios puts priors where most boxes are. But a box needs
    a prior within reach, not near on average, so the share of matched boxes is raised from there by Powell's
    method, and from the model's own priors, if these are as many.

    Args:
        boxes: (n, 4) as from `network_boxes`.
        model: The network.
        scales: Scales for each of the five levels; 0: as many as the model has.
        ratios: Aspect ratios; 0: as many as the model has.
        iou: Overlap with a prior from which a box is matched.
        seed: Of k-means' starts, and of the boxes to look at.

    Returns:
        `model` with other scales and aspect ratios, and with priors that need not be square.

    Raises:
        UsageError: a number out of its range, or there are more priors than allowed.
    """
    for name, value in (("--scales", scales), ("--ratios", ratios)):
        if not 0 <= value <= _MOST:
            raise UsageError(f"{name} is {value}; it must be in 1..{_MOST}, or 0 for the model's number")
    own = _pack(model)
    levels = len(model.prior_scales)
    per_level, number = scales or len(model.prior_scales[0]), ratios or len(model.prior_aspect_ratios)
    width, height = _sides(boxes, model).T
    sizes = _centres(np.log(width * height) / 2, levels * per_level, seed)
    starts = [np.concatenate([sizes, _centres(np.log(width / height), number, seed)])]
    if len(own) == len(starts[0]):
        starts.append(own)
    largest = np.log(max(model.input_shape))
    rng = np.random.default_rng(seed)
    some = boxes if len(boxes) <= _SEARCHED else rng.choice(boxes, _SEARCHED, replace=False)

    def loss(logs: np.ndarray) -> float:
        fit = best_overlaps(some, _unpack(logs, model, per_level))
        return -fit.matched(iou) - float(fit.overlaps.mean()) / 10  # a slope where the share is level

    def search(start: np.ndarray) -> np.ndarray:
        start[:-number] = start[:-number].clip(max=largest)
        near = [(value - _REACH, min(value + _REACH, largest)) for value in start]
        return minimize(
            loss, start, method="Powell", bounds=near, options={"maxiter": _ROUNDS, "xtol": 1e-2}
        ).x

    best = min(map(search, starts), key=loss)
    return _unpack(best, model, per_level)


def best_overlaps(boxes: np.ndarray, model: ModelConfig) -> Fit:
    """The highest IoU of each box with any prior of the network, as training matches them.

    For a prior of one size the IoU is highest where the centres are nearest, along each axis, so that only
    one cell of each level has to be looked at.

    Args:
        boxes: (n, 4) as from `network_boxes`.
        model: The network.
    """
    sides = _sides(boxes, model)
    relative = sides / np.array(model.input_shape[::-1])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    best = np.zeros(len(boxes))
    for rows_columns, scales in zip(pyramid_levels(model.input_size), model.prior_scales, strict=True):
        cells = np.array(rows_columns[::-1])
        nearest = (np.clip(np.floor(centres * cells), 0, cells - 1) + 0.5) / cells
        away = np.abs(centres - nearest)
        priors = make_priors(
            [(1, 1)], [scales], model.prior_aspect_ratios, model.input_size, model.prior_square
        )
        for prior in priors[:, 2:].astype(np.float64):
            shared = np.minimum((relative + prior) / 2 - away, np.minimum(relative, prior)).clip(0)
            intersection = shared.prod(axis=1)
            union = relative.prod(axis=1) + prior.prod() - intersection
            np.maximum(best, intersection / union, out=best)
    return Fit(best, sides.prod(axis=1))


def settings_of(model: ModelConfig) -> list[str]:
    """The priors of a model as assignments for `--set`."""

    def text(values: Iterable[float]) -> str:
        return f"[{','.join(f'{value:g}' for value in values)}]"

    return [
        f"model.prior_scales=[{','.join(map(text, model.prior_scales))}]",
        f"model.prior_aspect_ratios={text(model.prior_aspect_ratios)}",
        f"model.prior_square={str(model.prior_square).lower()}",
    ]


def _sides(boxes: np.ndarray, model: ModelConfig) -> np.ndarray:
    """(n, 2) widths and heights in pixels of the network's input, at least those that training uses."""
    return np.maximum(boxes[:, 2:] - boxes[:, :2], MIN_SIDE) * np.array(model.input_shape[::-1])


def _pack(model: ModelConfig) -> np.ndarray:
    """The logarithms of all scales, level by level, and then of the aspect ratios."""
    values = [size for level in model.prior_scales for size in level]
    ratios = np.array(model.prior_aspect_ratios)
    if model.prior_square:  # there the ratio multiplies the size of both sides
        values, ratios = [size * float(np.sqrt(ratios).mean()) for size in values], np.ones_like(ratios)
    return np.log([*values, *ratios])


def _unpack(logs: np.ndarray, model: ModelConfig, per_level: int) -> ModelConfig:
    """The model with the priors of `_pack`'s logarithms, rounded; larger ones in coarser levels."""
    count = len(model.prior_scales) * per_level
    logs = np.concatenate([np.sort(logs[:count]), np.sort(logs[count:])])
    values = [float(f"{value:.{_DIGITS}g}") for value in np.exp(logs).tolist()]
    scales = tuple(tuple(values[start : start + per_level]) for start in range(0, count, per_level))
    return replace(model, prior_scales=scales, prior_aspect_ratios=tuple(values[count:]), prior_square=False)


def _centres(logs: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The centres of `count` clusters (count,), ascending."""
    rng = np.random.default_rng(seed)
    if len(logs) > _SAMPLE:
        logs = rng.choice(logs, _SAMPLE, replace=False)
    # k-means leaves clusters empty where there are few different values; quantiles repeat them.
    best = np.quantile(logs, (np.arange(count) + 0.5) / count)
    error = np.square(logs[:, None] - best).min(axis=1).sum()
    if len(np.unique(logs)) > count:
        for _ in range(_STARTS):
            found, labels = kmeans2(logs, count, iter=50, minit="++", seed=rng)
            if (other := np.square(logs - found[labels]).sum()) < error:
                best, error = found, other
    return np.sort(best)
