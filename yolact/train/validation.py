"""Box and mask AP of the network in training."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from yolact.config import Config
from yolact.data.annotations import read_annotations
from yolact.data.layout import image_path
from yolact.data.split import held_out
from yolact.engine import TorchEngine, describe
from yolact.evaluation.evaluate import DEFAULT_BATCH, Predictions, predict, score
from yolact.evaluation.ground_truth import (
    check_image_sizes,
    match_categories,
    match_names,
    read_ground_truth,
)
from yolact.model import Yolact
from yolact.train.distributed import Processes
from yolact.train.pictures import mosaic
from yolact_runtime.errors import UsageError, YolactError, counted, first_line
from yolact_runtime.sources.images import read_image

log = logging.getLogger(__name__)

DRAWN_SCORE = 0.15  # the lowest score of drawn instances, as in the original's demo


class Validation:
    """The validation images of a configuration, shared between the processes.

    Args:
        config: Has the dataset. With `train.overfit` or `train.val_fraction`, training images are used.
        held: Ids of the images held out by `train.val_fraction`.
        processes: Each evaluates a share; the first one computes AP.

    Attributes:
        failures: Reasons by file name for images that the last run could not evaluate.

    Raises:
        YolactError: the annotation file cannot be used, has none of the classes, or images are missing.
    """

    def __init__(self, config: Config, held: Collection[int], processes: Processes) -> None:
        data, limit = config.dataset, config.train.overfit
        from_training = bool(limit or held)
        self.images = Path(data.train_images if from_training else data.val_images)
        self.truth = read_ground_truth(
            data.train_annotations if from_training else data.val_annotations,
            self.images,
            data.crowd_as_instances,
        )
        images = self.truth.images
        if data.classes:
            if limit:  # the same images as in training
                left_out = read_annotations(self.truth.path).images_without(config.classes.category_ids)
                images = [image for image in images if image["id"] not in left_out]
            self.truth = self.truth.only(set(match_names(describe(config), self.truth).values()))
        if limit:
            held = [image["id"] for image in images[:limit]]
        if held:
            self.truth = self.truth.subset(held)
        self.processes = processes
        self.failures: dict[str, str] = {}
        match_categories(describe(config), self.truth)
        missing = [path for path in self._paths() if not path.is_file()]
        if missing:
            raise YolactError(
                f"{len(missing)} of {counted(len(self.truth.images), 'validation image')} of"
                f" {self.truth.path} are missing, for example {missing[0].absolute()};"
                " --validate-every 0 trains without validation"
            )
        check_image_sizes(self.truth, self.images)

    def _paths(self) -> list[Path]:
        return [image_path(self.images, image["file_name"]) for image in self.truth.images]

    def run(self, model: Yolact, device: torch.device, stop: object = None) -> dict[str, float | None] | None:
        """Measure AP of `model`, and put it in evaluation mode.

        Args:
            model: The network.
            device: Where it is.
            stop: Becomes true when the validation should stop; looked at before each batch.

        Returns:
            AP, 0..1, by name; None without annotations. Empty except in the first process. None if stopped.

        Raises:
            YolactError: it failed in any process, or no image could be read.
        """
        engine = TorchEngine.from_model(model, str(device))
        processes, images = self.processes, self.truth.images
        share = self.truth.subset({image["id"] for image in images[processes.rank :: processes.count]})
        # Every process asks as often as the one with most batches, as the answer is exchanged.
        left = math.ceil(math.ceil(len(images) / processes.count) / DEFAULT_BATCH)
        stopped = False
        problem: Exception | None = None
        found = Predictions()

        def asked_to_stop() -> bool:
            nonlocal left, stopped
            left -= 1
            stopped = stopped or processes.any(bool(stop) or problem is not None)
            return stopped

        try:
            if share.images:
                found = predict(engine, self.images, share, DEFAULT_BATCH, progress=False, stop=asked_to_stop)
        except Exception as error:
            problem = error
        while left > 0 and not stopped:
            asked_to_stop()
        reason = problem and first_line(problem)
        if problem and not isinstance(problem, YolactError):
            reason = f"{type(problem).__name__}: {reason}"
        whole, reasons = Predictions(), []
        for predictions, failed in processes.gather((found, reason)):
            reasons += [failed] if failed else []
            whole.image_ids += predictions.image_ids
            whole.boxes += predictions.boxes
            whole.masks += predictions.masks
            whole.failures.update(predictions.failures)
        if reasons:
            raise YolactError(reasons[0]) from problem
        if stopped:
            return None
        self.failures = whole.failures
        if len(whole.failures) == len(images):
            raise YolactError(f"no image can be evaluated: {next(iter(whole.failures.values()))}")
        return self._metrics(whole) if processes.main else {}

    def _metrics(self, found: Predictions) -> dict[str, float | None]:
        evaluation = score(self.truth, found)
        metrics = {"box_ap": evaluation.box.ap, "box_ap50": evaluation.box.ap50}
        if evaluation.mask is not None:
            metrics |= {"mask_ap": evaluation.mask.ap, "mask_ap50": evaluation.mask.ap50}
        return metrics

    def draw(self, model: Yolact, device: torch.device, count: int) -> np.ndarray:
        """The first `count` images that can be read, with what `model` finds in them, as one picture.

        Returns:
            (H, W, 3) uint8 BGR.
        """
        engine = TorchEngine.from_model(model, str(device))
        tiles: list[np.ndarray] = []
        for path, image in zip(self._paths(), self.truth.images, strict=True):
            if len(tiles) < count and image["file_name"] not in self.failures:
                pixels = read_image(path)
                (result,) = engine.predict([pixels], DRAWN_SCORE, top_k=15)
                tiles.append(result.draw(pixels))
        return mosaic(tiles)


def open_validation(config: Config, held: Collection[int], processes: Processes) -> Validation | None:
    """The images to validate on; None if the settings or the dataset have none."""
    settings, data = config.train, config.dataset
    if not settings.validate_every:
        return None
    if not (data.has_validation or settings.overfit or held):
        log.info(
            "%s has no validation part: training without validation (--val-fraction 0.1 holds out a tenth)",
            data.name,
        )
        return None
    return Validation(config, held, processes)


def held_out_images(config: Config) -> set[int]:
    """Ids of the training images that `train.val_fraction` holds out for validation; none if that is 0.

    Raises:
        UsageError: the dataset has a validation part.
    """
    data, settings = config.dataset, config.train
    if not settings.val_fraction or settings.overfit:
        return set()
    if data.has_validation:
        raise UsageError(
            f"train.val_fraction = {settings.val_fraction}, but {data.name} has a validation part,"
            f" {data.val_annotations}; leave one of them out"
        )
    return held_out(read_annotations(data.train_annotations).images, settings.val_fraction, settings.seed)


def quality(metrics: dict[str, float | None]) -> float:
    """What the best weights are selected by: mask AP, or box AP if the annotations have no masks."""
    value = metrics.get("mask_ap", metrics["box_ap"])
    return -1.0 if value is None else value
