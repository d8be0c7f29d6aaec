"""A checkout of the original implementation, running in its own process.

Its modules are called `yolact`, `data` and `utils`, so they cannot be imported together with ours; and its
output, its globals and its crashes stay in that process.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from yolact_runtime.errors import YolactError

if TYPE_CHECKING:
    import torch

    from yolact.config import Config
    from yolact.data.coco import CocoDataset
    from yolact.model import Yolact

T = TypeVar("T", bound="CheckoutProcess")

_SCRIPT = Path(__file__).with_name("original_worker.py")


class CheckoutProcess:
    """Reads requests and writes answers, a line each; a context manager that ends the process.

    Args:
        checkout: Folder of github.com/dbolya/yolact.
        task: One of the tasks of `original_worker.py`.
        arguments: Those of the task.
        folder: For the standard error of the process.

    Raises:
        YolactError: no checkout.
    """

    def __init__(self, checkout: Path, task: str, arguments: Sequence[str | Path], folder: Path) -> None:
        if not (checkout / "layers" / "modules" / "multibox_loss.py").is_file():
            raise YolactError(f"--original {checkout}: not a checkout of github.com/dbolya/yolact")
        self._errors = folder / "stderr.txt"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, _SCRIPT, checkout.resolve(), task, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=checkout,
                text=True,
            )

    def ask(self, line: str) -> str:
        """Send a line and wait for the answer.

        Raises:
            YolactError: the process has ended; with the last line of its output.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the reason is reported below
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            last = self._errors.read_text(errors="replace").strip().splitlines()[-1:]
            raise YolactError(f"the original ended: {last[0] if last else 'no message'}")
        return answer

    def close(self) -> None:
        """End the process; may be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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
        import torch

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
    import cv2

    from yolact.data.segmentation import to_mask

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
