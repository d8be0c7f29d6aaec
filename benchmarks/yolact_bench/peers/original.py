"""The original YOLACT, from a checkout of its repository and weights of its form.

It runs unchanged in its own process: its modules are called `yolact`, `data` and `utils`, so they cannot be
imported together with ours; and its output, its globals and its crashes stay there. As a candidate it runs
`cv2.imread`, its `FastBaseTransform`, network, `Detect`, `postprocess` with masks at image size, and its
`Detections`, which encode each whole mask by pycocotools. Stages and CPU time are measured in the process;
the pipe to it is in neither, and takes well below a millisecond.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_bench.measure.candidate import PREPARED, Candidate, Run
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import InputSize, Metadata, size_text

if TYPE_CHECKING:
    import torch

    from yolact.data.batch import Batch
    from yolact.data.coco import CocoDataset
    from yolact.model import Yolact

_SCRIPT = Path(__file__).with_name("original_worker.py")

# The configurations in its data/config.py, which evaluates the name as Python.
CONFIGS = (
    *("yolact_base", "yolact_im400", "yolact_im700", "yolact_darknet53", "yolact_resnet50"),
    *("yolact_resnet50_pascal", "yolact_plus_base", "yolact_plus_resnet50"),
)


class CheckoutProcess:
    """A checkout of github.com/dbolya/yolact; `original_worker.py` says what `task` and `settings` may be.

    Raises:
        YolactError: no checkout.
    """

    def __init__(self, checkout: Path, task: str, **settings: Any) -> None:
        if not (checkout / "layers" / "modules" / "multibox_loss.py").is_file():
            raise YolactError(f"--original {checkout}: not a checkout of github.com/dbolya/yolact")
        words: list[str | Path] = [sys.executable, _SCRIPT, checkout.resolve(), task]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [*words, json.dumps(settings, default=str)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=checkout,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """Send a request and wait for the answer.

        Raises:
            YolactError: the process has ended; with the last line of its output.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the reason is reported below
            print(json.dumps(request, default=str), file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise YolactError(f"the original ended: {last[0] if last else 'no message'}")
        return json.loads(line)

    def close(self) -> None:
        """End the process; may be called twice."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError), self._process:  # which closes the pipes and waits
            self._errors.close()


class OriginalCandidate(Candidate):
    """A checkout of github.com/dbolya/yolact with published weights, `.pth`, of which only tensors are read.

    `like` is the metadata of our engine with the same weights; `device` is "cpu" or "cuda".

    Raises:
        UsageError: a configuration that the original does not have.
        YolactError: no checkout, no weights, or it does not start; with the last line of its output.
    """

    name = "original"
    precision = "fp32"
    licence = "MIT"
    note = "the same weights; float resize, masks of the whole image"

    def __init__(
        self, checkout: Path, weights: Path, like: Metadata, threads: int, device: str = "cpu"
    ) -> None:
        if like.config not in CONFIGS:
            raise UsageError(f"the original has no configuration {like.config}; it has {', '.join(CONFIGS)}")
        if not weights.is_file():
            raise YolactError(f"--weights {weights} does not exist")
        side = _square(like.input_size, "--engine")
        self.config, self.input_size = like.config, side
        self.backend = f"PyTorch, its own code ({device})"
        self._process = CheckoutProcess(
            checkout,
            "infer",
            config=f"{like.config}_config",
            weights=weights.resolve(),
            device=device,
            threads=threads,
            input_size=side,
            classes=len(like.category_ids),
            categories=like.category_ids,
        )

    def prepare(self, images: Sequence[Path], batch: int) -> None:
        if batch != 1:
            raise UsageError(f"the original evaluates one image at a time, not {batch}")
        # Absolute: the process works in the checkout's folder.
        self._process.ask(prepare=[path.resolve() for path in images[:PREPARED]])

    def network_only(self) -> None:
        self._process.ask(network_only=True)

    def end_to_end(self, paths: Sequence[Path]) -> Run:
        (path,) = paths
        return Run(**self._process.ask(run=path.resolve()))

    def to_coco(self, path: Path, image_id: int) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self._process.ask(run=path.resolve(), image_id=image_id)["results"]
        return results

    def close(self) -> None:
        self._process.close()


def open_training(
    checkout: Path,
    model: Yolact,
    dataset: CocoDataset,
    batch: Batch,
    freeze_bn: bool,
    folder: Path,
    device: torch.device,
) -> CheckoutProcess:
    """Start a process that runs a training step of the original whenever it is asked.

    Args:
        checkout: Folder of github.com/dbolya/yolact, which must have the configuration of `model`.
        model, device: Source of the weights, and where the original trains.
        dataset, batch: The samples, without augmentation, and the first of them.
        freeze_bn: Whether batch norm keeps its statistics.
        folder: For the files that the process reads.
    """
    import torch

    side = _square(model.config.model.input_size, "model.input_size")
    case, weights, config = folder / "case.pth", folder / "weights.pth", model.config
    boxes, masks, crowds = [], [], []
    # The form of the original's dataset: crowd regions last, with the label -1.
    for index, target in enumerate(batch.targets):
        crowds.append(len(target.crowd_boxes))
        labels = torch.cat([target.labels, torch.full((crowds[-1],), -1)])
        boxes.append(torch.column_stack([torch.cat([target.boxes, target.crowd_boxes]), labels]).float())
        masks.append(torch.from_numpy(_masks(dataset, index, side)).float())
    torch.save((batch.images, boxes, masks, crowds), case)
    torch.save(model.state_dict(), weights)
    return CheckoutProcess(
        checkout,
        "train",
        config=f"{config.name}_config",
        weights=weights,
        case=case,
        device=device,
        threads=torch.get_num_threads(),
        input_size=side,
        classes=len(config.classes.names),
        freeze_bn=freeze_bn,
    )


def _square(size: InputSize, what: str) -> int:
    """The side of an input, which has to be a square; `what` has this size."""
    if not isinstance(size, int):
        raise UsageError(f"{what} has an input of {size_text(size)}; the original takes squares only")
    return size


def _masks(dataset: CocoDataset, index: int, side: int) -> np.ndarray:
    """The masks (n, S, S) of a sample at input size S, crowd regions last."""
    import cv2

    from yolact.data.segmentation import to_mask

    record = dataset.records[index]
    height, width = dataset.read_image(record).shape[:2]
    boxes, crowd = dataset.boxes(record, height, width)
    real = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    order = real[np.argsort(crowd[real], kind="stable")]
    segmentations = [record.annotations[i]["segmentation"] for i in order]
    return np.stack([cv2.resize(to_mask(one or [], height, width), (side, side)) for one in segmentations])
