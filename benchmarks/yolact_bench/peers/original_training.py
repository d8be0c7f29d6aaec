"""Training steps of a checkout of the original, on our images and weights."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from yolact.config import Config
from yolact.data.coco import CocoDataset
from yolact.data.segmentation import to_mask
from yolact.model import Yolact
from yolact_bench.peers.checkout import CheckoutProcess


class OriginalTraining(CheckoutProcess):
    """Training steps of the original.

    Args:
        checkout: Folder of github.com/dbolya/yolact.
        model: Source of the weights; the original must have its configuration.
        dataset: Without augmentation; its first `count` images are the batch.
        count: Images in a step.
        freeze_bn: Whether batch norm keeps its statistics.
        folder: For the files that the process reads.
        device: Where it trains.

    Raises:
        YolactError: no checkout.
    """

    def __init__(
        self,
        checkout: Path,
        model: Yolact,
        dataset: CocoDataset,
        count: int,
        freeze_bn: bool,
        folder: Path,
        device: torch.device,
    ) -> None:
        case, weights = folder / "case.npz", folder / "weights.pth"
        _write_case(case, dataset, count, freeze_bn, model.config)
        torch.save(model.state_dict(), weights)
        name = f"{model.config.name}_config"
        super().__init__(checkout, "train", [name, case, weights, str(device), str(count)], folder)

    def step(self) -> float:
        """Run one step and return its loss.

        Raises:
            YolactError: it does not start, or ended; with the last line of its output.
        """
        return float(self.ask("step"))


def _write_case(path: Path, dataset: CocoDataset, count: int, freeze_bn: bool, config: Config) -> None:
    """Write images, boxes with labels, and masks in the form of the original's dataset: masks at input size,
    crowd regions last with the label -1."""
    size = config.model.input_size
    arrays: dict[str, np.ndarray] = {
        "classes": np.array(len(config.classes.names)),
        "freeze": np.array(freeze_bn),
    }
    crowds = []
    for index in range(count):
        sample, record = dataset[index], dataset.records[index]
        height, width = dataset.read_image(record).shape[:2]
        boxes, crowd = dataset.boxes(record, height, width)
        real = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        order = [*np.flatnonzero(real & ~crowd), *np.flatnonzero(real & crowd)]
        labels = [*sample.target.labels.tolist(), *[-1] * int((real & crowd).sum())]
        masks = [
            cv2.resize(to_mask(record.annotations[i]["segmentation"], height, width), (size, size))
            for i in order
        ]
        sides = np.array([width, height, width, height], np.float32)
        arrays[f"image{index}"] = sample.image.numpy()
        arrays[f"target{index}"] = np.column_stack([boxes[order] / sides, labels]).astype(np.float32)
        arrays[f"mask{index}"] = np.stack(masks).astype(np.float32)
        crowds.append(int((real & crowd).sum()))
    np.savez(path, crowds=np.array(crowds), **arrays)  # type: ignore[arg-type]
