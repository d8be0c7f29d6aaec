"""The original's order of work for one image, restated from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

import yolact
from yolact_runtime.errors import YolactError


class OriginalOrder:
    """The original's work for one image; boxes, scores and run lengths as it would write them.

    Args:
        model: The network, in evaluation mode, on the CPU.
    """

    def __init__(self, model: yolact.Yolact) -> None:
        self.model = model
        self.settings = model.config.detect
        self.size = model.config.model.input_size
        self.mean = torch.tensor(model.config.model.mean).view(1, 3, 1, 1)
        self.std = torch.tensor(model.config.model.std).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, path: Path) -> dict[str, Any]:
        """Work on an image file.

        Returns:
            `boxes` (n, 4) int64 x1 y1 x2 y2 in pixels, `classes` (n,) int64, `scores` (n,) and
            `mask_scores` (n,) float32, `rles`: run lengths; best score first.
        """
        image = cv2.imread(str(path))
        if image is None:
            raise YolactError(f"cannot read image {path}")
        height, width = image.shape[:2]
        frame = torch.from_numpy(image).float().unsqueeze(0)
        loc, logits, coefficients, prototypes = self.model(self._prepare(frame))
        conf = logits.softmax(-1)
        class_first = conf.transpose(2, 1).contiguous()  # (1, C+1, P)
        boxes = self._decode(loc[0])
        scores = class_first[0, 1:]  # (C, P)
        keep = scores.max(dim=0).values > self.settings.score_threshold
        if not keep.any():
            empty = torch.zeros(0)
            found = {"boxes": torch.zeros(0, 4), "classes": empty, "scores": empty, "mask_scores": empty}
            return {**found, "rles": []}
        boxes, coefficients, classes, scores = self._fast_nms(
            boxes[keep], coefficients[0, keep], scores[:, keep]
        )
        masks = torch.sigmoid(prototypes[0] @ coefficients.T)  # (Hp, Wp, n)
        masks = self._crop(masks, boxes).permute(2, 0, 1).contiguous()  # (n, Hp, Wp)
        mask_scores = scores
        if self.model.config.model.mask_iou:
            ious = self.model.maskiou_net(masks.unsqueeze(1))  # (n, C)
            mask_scores = scores * ious.gather(1, classes.unsqueeze(1)).squeeze(1)
        masks = F.interpolate(masks.unsqueeze(0), (height, width), mode="bilinear", align_corners=False)[0]
        masks.gt_(0.5)  # stays float, (n, H, W)
        x, y = _sides(boxes[:, 0::2], width), _sides(boxes[:, 1::2], height)
        boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1).long()
        rles = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks.numpy()]
        return {
            "boxes": boxes,
            "classes": classes,
            "scores": scores,
            "mask_scores": mask_scores,
            "rles": [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in rles],
        }

    def _prepare(self, frame: Tensor) -> Tensor:
        """(1, H, W, 3) BGR 0..255 to (1, 3, S, S) normalised RGB."""
        x = frame.permute(0, 3, 1, 2).contiguous()
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        x = (x - self.mean) / self.std
        return x[:, (2, 1, 0)].contiguous()

    def _decode(self, loc: Tensor) -> Tensor:
        """(P, 4) offsets to (P, 4) x1 y1 x2 y2, relative; of every prior, kept or not."""
        priors = self.model.priors
        centres = priors[:, :2] + loc[:, :2] * 0.1 * priors[:, 2:]
        sizes = priors[:, 2:] * torch.exp(loc[:, 2:] * 0.2)
        corners = centres - sizes / 2
        return torch.cat([corners, corners + sizes], 1)

    def _fast_nms(
        self, boxes: Tensor, coefficients: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best boxes, coefficients, classes and scores of (p, 4), (p, M) and scores (C, p)."""
        scores, index = scores.sort(1, descending=True)
        index, scores = index[:, : self.settings.nms_top_k].contiguous(), scores[:, : self.settings.nms_top_k]
        count, rows = index.shape
        boxes = boxes[index.view(-1)].view(count, rows, 4)
        coefficients = coefficients[index.view(-1)].view(count, rows, -1)
        iou = _iou(boxes)
        iou.triu_(diagonal=1)
        keep = iou.max(dim=1).values <= self.settings.iou_threshold  # (C, k)
        classes = torch.arange(count)[:, None].expand_as(keep)[keep]
        boxes, coefficients, scores = boxes[keep], coefficients[keep], scores[keep]
        scores, order = scores.sort(0, descending=True)
        order, scores = order[: self.settings.max_detections], scores[: self.settings.max_detections]
        return boxes[order], coefficients[order], classes[order], scores

    def _crop(self, masks: Tensor, boxes: Tensor) -> Tensor:
        """Masks (Hp, Wp, n) with zeros outside their boxes, widened by one cell."""
        height, width, n = masks.shape
        x = _sides(boxes[:, 0::2], width, 1)
        y = _sides(boxes[:, 1::2], height, 1)
        columns = torch.arange(width, dtype=x.dtype).view(1, -1, 1).expand(height, width, n)
        rows = torch.arange(height, dtype=x.dtype).view(-1, 1, 1).expand(height, width, n)
        inside = (columns >= x[:, 0]) & (columns < x[:, 1]) & (rows >= y[:, 0]) & (rows < y[:, 1])
        return masks * inside.float()


def _sides(relative: Tensor, size: int, padding: int = 0) -> Tensor:
    """Two relative coordinates (n, 2) in pixels, low and high, widened, each clamped on its own side."""
    ordered = (relative * size).sort(1).values
    return torch.stack([(ordered[:, 0] - padding).clamp(min=0), (ordered[:, 1] + padding).clamp(max=size)], 1)


def _iou(boxes: Tensor) -> Tensor:
    """(C, k, 4) to (C, k, k)."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    sides = (high - low).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])  # (C, k)
    return intersection / (area[:, :, None] + area[:, None, :] - intersection)
