"""Mask R-CNN with a ResNet-50 and feature pyramid, from torchvision.

With random weights it is levelled (`levelling`): left alone it would find nothing, and have no masks to make.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from yolact_bench.contender import Contender, Run
from yolact_bench.peers.common import different_batches, encode
from yolact_bench.peers.levelling import TOLD, settle, threshold
from yolact_runtime.errors import YolactError, first_line, missing_extra
from yolact_runtime.sources.images import read_image

if TYPE_CHECKING:
    import torch


class TorchvisionContender(Contender):
    """torchvision.models.detection.maskrcnn_resnet50_fpn on the CPU or a GPU.

    Args:
        threads: CPU threads; of the whole process.
        weights: A state dictionary, such as the published `maskrcnn_resnet50_fpn_coco-*.pth`; left out,
            random.
        detections: Most masks of an image.
        device: "cpu" or "cuda".
        short_side: Images are resized to this, in pixels; the published weights were trained with 800.
        long_side: But no side longer than this; published: 1333.

    Raises:
        YolactError: not installed, or the weights are others.
    """

    name = "torchvision"
    config = "Mask R-CNN R50-FPN"
    precision = "fp32"
    input_size = None
    licence = "BSD-3-Clause"

    def __init__(
        self,
        threads: int,
        weights: Path | None = None,
        detections: int = 100,
        device: str = "cpu",
        short_side: int = 800,
        long_side: int = 1333,
    ) -> None:
        try:
            import torch
            import torchvision
        except ModuleNotFoundError as error:
            raise missing_extra(f"--torchvision (no module {error.name!r})", "train") from error
        self._torch = torch
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        torch.manual_seed(0)
        model = torchvision.models.detection.maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            box_detections_per_img=detections,
            min_size=short_side,
            max_size=long_side,
        )
        self._random = weights is None
        if weights is not None:
            try:
                model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
            except Exception as error:  # torch raises many kinds, for files and for keys
                raise YolactError(
                    f"--torchvision-weights {weights}: not those of maskrcnn_resnet50_fpn"
                    f" ({first_line(error)})"
                ) from error
        self._model = model.eval().to(device)
        self._device = device
        self._prepared: Iterator[Any] = iter(())  # its ImageList
        self.backend = f"PyTorch {torch.__version__}, torchvision {torchvision.__version__} ({device})"
        size = f"short side {short_side}, long side at most {long_side}"
        self.note = f"{size}; {TOLD if weights is None else 'box score above 0.05'}"

    def prepare(self, images: Sequence[Path], batch: int) -> None:
        if self._random:
            self._level(self._tensor(read_image(images[0])))
        with self._torch.inference_mode():
            prepared = [
                self._model.transform([self._tensor(read_image(path)) for path in paths])[0]
                for paths in different_batches(images, batch)
            ]
        self._prepared = itertools.cycle(prepared)

    def alone(self) -> None:
        with self._torch.inference_mode():
            self._network(next(self._prepared))
            self._synchronize()

    def end_to_end(self, paths: Sequence[Path]) -> Run:
        with self._torch.inference_mode():
            marks = [time.perf_counter()]
            pictures = [read_image(path) for path in paths]
            marks.append(time.perf_counter())
            batch, _ = self._model.transform([self._tensor(picture) for picture in pictures])
            marks.append(self._synchronize())
            found = self._network(batch)
            marks.append(self._synchronize())
            sizes = [picture.shape[:2] for picture in pictures]
            found = self._model.transform.postprocess(found, batch.image_sizes, sizes)
            masks = [(one["masks"][:, 0] > 0.5).cpu().numpy() for one in found]  # (n, H, W)
            marks.append(time.perf_counter())
            count = sum(len(encode(one)) for one in masks)
            marks.append(time.perf_counter())
        stages = ("decode", "preprocess", "network", "masks", "rle")
        return Run({s: b - a for s, (a, b) in zip(stages, itertools.pairwise(marks), strict=True)}, count)

    def _network(self, batch: Any) -> list[dict[str, torch.Tensor]]:
        """Backbone, proposals and heads: boxes and small masks of a batch that is resized and padded."""
        features = self._model.backbone(batch.tensors)
        proposals, _ = self._model.rpn(batch, features)
        found: list[dict[str, Any]] = self._model.roi_heads(features, proposals, batch.image_sizes)[0]
        return found

    def _tensor(self, image: np.ndarray) -> torch.Tensor:
        """(H, W, 3) uint8 BGR to (3, H, W) RGB 0..1."""
        rgb = self._torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1])).to(self._device)
        return rgb.permute(2, 0, 1).float().div_(255)

    def _level(self, image: torch.Tensor) -> None:
        """Make random weights as much work as trained ones."""
        model = self._model
        batch, _ = model.transform([image])
        settle(model.backbone, lambda: model.backbone(batch.tensors))
        logits: list[torch.Tensor] = []
        hook = model.roi_heads.box_predictor.register_forward_hook(
            lambda module, inputs, outputs: logits.append(outputs[0])
        )
        with self._torch.inference_mode():
            self._network(batch)
        hook.remove()
        model.roi_heads.score_thresh = threshold(logits[0].softmax(-1)[:, 1:])

    def _synchronize(self) -> float:
        if self._device == "cuda":
            self._torch.cuda.synchronize()
        return time.perf_counter()
