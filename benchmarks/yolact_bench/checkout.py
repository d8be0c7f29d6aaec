"""A checkout of the original implementation as a peer: in a process of its own, on our images and weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from yolact.config import Config
from yolact.data.coco import CocoDataset
from yolact.data.segmentation import to_mask
from yolact.model import Yolact
from yolact_runtime.errors import YolactError


class OriginalTraining:
    """Training steps of the original; a context manager that ends its process.

    Args:
        checkout: Folder of github.com/dbolya/yolact.
        model: Its weights are used, its configuration must be one of the original's.
        dataset: Without augmentation; its first `count` images are the batch.
        count: Images in a step.
        freeze_bn: Whether batch norm stays as it is.
        folder: For the files that the process reads.
        device: Where.

    Raises:
        YolactError: no checkout, or it does not start; says what it wrote last.
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
        if not (checkout / "layers" / "modules" / "multibox_loss.py").is_file():
            raise YolactError(f"--original {checkout}: not a checkout of github.com/dbolya/yolact")
        case, weights, self._words = folder / "case.npz", folder / "weights.pth", folder / "stderr.txt"
        _write_case(case, dataset, count, freeze_bn, model.config)
        torch.save(model.state_dict(), weights)
        script = Path(__file__).with_name("original_worker.py")
        name = f"{model.config.name}_config"
        with self._words.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, script, checkout.resolve(), name, case, weights, str(device), str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=checkout,
                text=True,
            )

    def step(self) -> float:
        """One step; returns its loss."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
            return float(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            last = self._words.read_text(errors="replace").strip().splitlines()[-1:]
            raise YolactError(f"the original ended: {last[0] if last else 'no message'}") from None

    def __enter__(self) -> OriginalTraining:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()


def _write_case(path: Path, dataset: CocoDataset, count: int, freeze_bn: bool, config: Config) -> None:
    """Images, boxes with labels, and masks as the original's data set returns them: masks at input size,
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
