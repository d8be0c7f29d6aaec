"""Segmentation models of Ultralytics, from their YAML: random weights.

The package is under the AGPL-3.0. It is imported only when it is asked for, and no extra of this project
installs it. Checkpoints (`.pt`) are pickles of its classes and are not opened.

Random weights are adapted to the first image: otherwise it would find nothing, and have no masks to compute.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolact_bench.peers.torch_peer import NOTE, TorchPeer, settle_batch_norm, threshold
from yolact_runtime.cache import cache_folder, create_folder
from yolact_runtime.errors import UsageError, YolactError, first_line


class UltralyticsCandidate(TorchPeer):
    """ultralytics.YOLO of a segmentation model, by its own predictor, with at most `detections` masks of an
    image. `model` is the name or path of a YAML, such as `yolo11n-seg.yaml`.

    Raises:
        UsageError: not a YAML.
        YolactError: ultralytics is not installed, or cannot build a segmentation model from the YAML.
    """

    input_size = 640  # the longest side
    licence = "AGPL-3.0"

    def __init__(self, model: str, threads: int, detections: int = 100, device: str = "cpu") -> None:
        if not model.endswith((".yaml", ".yml")):
            raise UsageError(f"--ultralytics {model}: give a YAML such as yolo11n-seg.yaml (random weights)")
        # Otherwise it goes online, installs missing packages, and leaves settings in the home folder.
        folder = cache_folder() / "ultralytics"
        with contextlib.suppress(OSError):  # then it chooses a folder itself
            create_folder(folder.parent)
            create_folder(folder)
        for name, value in (("OFFLINE", "true"), ("AUTOINSTALL", "false"), ("CONFIG_DIR", str(folder))):
            os.environ.setdefault(f"YOLO_{name}", value)
        try:
            import torch
            import ultralytics
        except ModuleNotFoundError as error:
            raise YolactError(
                f"--ultralytics needs packages that are not installed (no module {error.name!r});"
                " run: pip install ultralytics (AGPL-3.0)"
            ) from error
        torch.manual_seed(0)
        try:
            self._model = ultralytics.YOLO(model, task="segment", verbose=False)
        except Exception as error:  # its parser raises many kinds
            raise YolactError(
                f"--ultralytics {model}: not one of its models ({first_line(error)})"
            ) from error
        super().__init__(threads, device, f"ultralytics {ultralytics.__version__}")
        self._end2end = bool(getattr(self._model.model, "end2end", False))
        self._options: dict[str, Any] = {
            "imgsz": self.input_size,
            "device": device,
            "max_det": detections,
            "retina_masks": True,  # masks at image size, as for COCO results
            "verbose": False,
            "save": False,
        }
        self.name = self.config = Path(model).stem
        self.note = f"longest side {self.input_size}, aspect kept; {NOTE}"

    def _preprocess(self, images: Sequence[np.ndarray]) -> Any:
        return self._model.predictor.preprocess(list(images))

    def _detect(self, batch: Any) -> Any:
        """Run the network and its own NMS."""
        from ultralytics.utils.nms import non_max_suppression

        return non_max_suppression(
            self._rows(self._model.predictor.inference(batch)),
            self._options["conf"],
            self._model.predictor.args.iou,
            max_det=self._options["max_det"],
            nc=len(self._model.names),
            end2end=self._end2end,
        )

    def _masks(self, images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float, float]:
        """Run its predictor, which times its stages by its own clock, per image."""
        results = self._model.predict(list(images), **self._options)
        masks = [result.masks.data.cpu().numpy() for result in results if result.masks is not None]
        network, last = (sum(one.speed[key] for one in results) for key in ("inference", "postprocess"))
        return masks, network / 1000, last / 1000

    def _adapt(self, image: np.ndarray) -> None:
        """Settle batch norm and choose the threshold; the predictor copies the network afterwards."""
        network, size = self._model.model.eval(), self.input_size
        pixels = np.ascontiguousarray(cv2.resize(image, (size, size))[:, :, ::-1].transpose(2, 0, 1)[None])
        device = next(network.parameters()).device
        batch = self._torch.from_numpy(pixels).to(device).float() / 255  # (1, 3, S, S) RGB
        settle_batch_norm(network, lambda: network(batch))
        # Its predictor copies the network, with batch norm folded in.
        self._model.predict(image, conf=0.999, **self._options)
        predictor = self._model.predictor
        with self._torch.inference_mode():
            rows = self._rows(predictor.inference(predictor.preprocess([image])))
        if self._end2end:  # without NMS
            scores = rows[:, :, 4]  # (N, boxes, 6 + M)
        else:
            scores = rows[:, 4 : 4 + len(self._model.names)].amax(1)  # of (N, 4 + C + M, boxes)
        self._options["conf"] = threshold(scores)
        self._model.predict(image, **self._options)

    @staticmethod
    def _rows(found: Any) -> Any:
        """The boxes in the output of the network."""
        while isinstance(found, list | tuple):
            found = found[0]
        return found
