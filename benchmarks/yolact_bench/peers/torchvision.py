"""Mask R-CNN with a ResNet-50 and feature pyramid, from torchvision.

Random weights are adapted (`random_weights`): otherwise it would find nothing, and have no masks to compute.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_bench.measure.candidate import Run
from yolact_bench.peers.random_weights import NOTE, settle_batch_norm, threshold
from yolact_bench.peers.torch_peer import TorchPeer, encode
from yolact_runtime.errors import YolactError, first_line, missing_extra
from yolact_runtime.sources.images import read_image

if TYPE_CHECKING:
    import torch


class TorchvisionCandidate(TorchPeer):
    """torchvision.models.detection.maskrcnn_resnet50_fpn on the CPU or a GPU.

    Args:
        threads: CPU threads; of the whole process.
        weights: A state dictionary, such as the published `maskrcnn_resnet50_fpn_coco-*.pth`; None for
            random weights.
        detections: Most masks of an image.
        device: "cpu" or "cuda".
        short_side: Images are resized to this, in pixels; the published weights were trained with 800.
        long_side: But no side longer than this; published: 1333.

    Raises:
        YolactError: torchvision is not installed, or the weights do not match the model.
    """

    name = "torchvision"
    config = "Mask R-CNN R50-FPN"
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
        super().__init__(threads, device, f"torchvision {torchvision.__version__}")
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
        size = f"short side {short_side}, long side at most {long_side}"
        self.note = f"{size}; {NOTE if self._random else 'box score above 0.05'}"

    def end_to_end(self, paths: Sequence[Path]) -> Run:
        with self._torch.inference_mode():
            marks = [time.perf_counter()]
            images = [read_image(path) for path in paths]
            marks.append(time.perf_counter())
            batch = self._preprocess(images)
            marks.append(self._synchronize())
            found = self._detect(batch)
            marks.append(self._synchronize())
            sizes = [image.shape[:2] for image in images]
            found = self._model.transform.postprocess(found, batch.image_sizes, sizes)
            masks = [(one["masks"][:, 0] > 0.5).cpu().numpy() for one in found]  # (n, H, W)
            marks.append(time.perf_counter())
            count = sum(len(encode(one)) for one in masks)
            marks.append(time.perf_counter())
        stages = ("decode", "preprocess", "network", "masks", "rle")
        return Run({s: b - a for s, (a, b) in zip(stages, itertools.pairwise(marks), strict=True)}, count)

    def _preprocess(self, images: Sequence[np.ndarray]) -> Any:
        tensors = [
            self._torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1])).to(self._device)
            for image in images
        ]
        # Each (3, H, W) RGB 0..1; the result is resized and padded.
        return self._model.transform([one.permute(2, 0, 1).float().div_(255) for one in tensors])[0]

    def _detect(self, batch: Any) -> list[dict[str, torch.Tensor]]:
        """Backbone, proposals and heads: boxes and small masks."""
        features = self._model.backbone(batch.tensors)
        proposals, _ = self._model.rpn(batch, features)
        found: list[dict[str, Any]] = self._model.roi_heads(features, proposals, batch.image_sizes)[0]
        return found

    def _adapt(self, image: np.ndarray) -> None:
        if not self._random:
            return
        model, batch = self._model, self._preprocess([image])
        settle_batch_norm(model.backbone, lambda: model.backbone(batch.tensors))
        logits: list[torch.Tensor] = []
        hook = model.roi_heads.box_predictor.register_forward_hook(
            lambda module, inputs, outputs: logits.append(outputs[0])
        )
        with self._torch.inference_mode():
            self._detect(batch)
        hook.remove()
        model.roi_heads.score_thresh = threshold(logits[0].softmax(-1)[:, 1:])
