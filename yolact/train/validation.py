"""Box and mask AP of the network in training."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from yolact.config import Config
from yolact.engine import TorchEngine, describe
from yolact.evaluation.evaluate import Predictions, predict, score
from yolact.evaluation.ground_truth import check_images, match_categories, read_ground_truth
from yolact.model import Yolact
from yolact.train.distributed import Processes

log = logging.getLogger(__name__)


class Validation:
    """The validation images of a configuration, shared between the processes.

    Args:
        config: Has the dataset. With `train.overfit`, its training images are used.
        processes: Each evaluates a share; the first one computes AP.

    Raises:
        YolactError: the annotation file cannot be used.
    """

    def __init__(self, config: Config, processes: Processes) -> None:
        data, limit = config.dataset, config.train.overfit
        self.images = Path(data.train_images if limit else data.val_images)
        annotations = data.train_annotations if limit else data.val_annotations
        self.truth = read_ground_truth(annotations, self.images, data.crowd_as_instances)
        if limit:
            first = self.truth.images[:limit]
            ids = {image["id"] for image in first}
            kept = [entry for entry in self.truth.annotations if entry["image_id"] in ids]
            self.truth = replace(self.truth, images=first, annotations=kept)
        self.processes = processes
        match_categories(describe(config), self.truth)
        check_images(self.truth, self.images)

    def run(self, model: Yolact, device: torch.device) -> dict[str, float | None]:
        """AP of `model`, 0..1, by name; None without annotations. Empty except in the first process.

        Puts the model in evaluation mode.
        """
        engine = TorchEngine.from_model(model, str(device))
        share = replace(self.truth, images=self.truth.images[self.processes.rank :: self.processes.count])
        found = predict(engine, self.images, share, progress=False) if share.images else Predictions()
        gathered = self.processes.gather(found)
        if not self.processes.main:
            return {}
        whole = Predictions()
        for each in gathered:
            whole.image_ids += each.image_ids
            whole.boxes += each.boxes
            whole.masks += each.masks
            whole.failures.update(each.failures)
        evaluation = score(self.truth, whole)
        metrics = {"box_ap": evaluation.box.ap, "box_ap50": evaluation.box.ap50}
        if evaluation.mask is not None:
            metrics |= {"mask_ap": evaluation.mask.ap, "mask_ap50": evaluation.mask.ap50}
        return metrics


def quality(metrics: dict[str, float | None]) -> float:
    """What the best weights are selected by: mask AP, or box AP if the annotations have no masks."""
    value = metrics.get("mask_ap", metrics["box_ap"])
    return -1.0 if value is None else value
