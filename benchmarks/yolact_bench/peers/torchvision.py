"""Mask R-CNN with a ResNet-50 and feature pyramid, from torchvision.

Random weights are adapted to the first image: otherwise it would find nothing, and have no masks to compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_bench.peers.torch_peer import NOTE, TorchPeer, settle_batch_norm, threshold
from yolact_runtime.errors import YolactError, first_line, missing_extra


class TorchvisionCandidate(TorchPeer):
    """torchvision.models.detection.maskrcnn_resnet50_fpn, with at most `detections` masks of an image.

    `weights` is a state dictionary, such as the published `maskrcnn_resnet50_fpn_coco-*.pth`; None for random
    weights.

    Raises:
        YolactError: torchvision is not installed, or the weights do not match the model.
    """

    name = "torchvision"
    config = "Mask R-CNN R50-FPN"
    input_size = None
    licence = "BSD-3-Clause"
    short_side, long_side = 800, 1333  # pixels, as the published weights were trained

    def __init__(
        self, threads: int, weights: Path | None = None, detections: int = 100, device: str = "cpu"
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
            min_size=self.short_side,
            max_size=self.long_side,
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
        size = f"short side {self.short_side}, long side at most {self.long_side}"
        self.note = f"{size}; {NOTE if self._random else 'box score above 0.05'}"

    def _preprocess(self, images: Sequence[np.ndarray]) -> Any:
        tensors = [
            self._torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1])).to(self._device)
            for image in images
        ]
        # Each (3, H, W) RGB 0..1; the result is resized and padded.
        return self._model.transform([one.permute(2, 0, 1).float().div_(255) for one in tensors])[0]

    def _detect(self, batch: Any) -> Any:
        """Backbone, proposals and heads: boxes and small masks."""
        features = self._model.backbone(batch.tensors)
        proposals, _ = self._model.rpn(batch, features)
        return self._model.roi_heads(features, proposals, batch.image_sizes)[0]

    def _masks(self, images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float, float]:
        """Run the stages of its forward pass one by one."""
        batch = self._preprocess(images)
        prepared = self._synchronize()
        found = self._detect(batch)
        detected = self._synchronize()
        sizes = [image.shape[:2] for image in images]
        found = self._model.transform.postprocess(found, batch.image_sizes, sizes)
        masks = [(one["masks"][:, 0] > 0.5).cpu().numpy() for one in found]
        return masks, detected - prepared, self._synchronize() - detected

    def _adapt(self, image: np.ndarray) -> None:
        """Settle batch norm and choose the threshold, if the weights are random."""
        if not self._random:
            return
        model, batch = self._model, self._preprocess([image])
        settle_batch_norm(model.backbone, lambda: model.backbone(batch.tensors))
        logits: list[Any] = []
        hook = model.roi_heads.box_predictor.register_forward_hook(
            lambda module, inputs, outputs: logits.append(outputs[0])
        )
        with self._torch.inference_mode():
            self._detect(batch)
        hook.remove()
        model.roi_heads.score_thresh = threshold(logits[0].softmax(-1)[:, 1:])
