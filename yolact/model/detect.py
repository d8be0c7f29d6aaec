"""From raw outputs to detections and masks (YOLACT, Sec. 3.3 and 5), vectorised over the batch."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from yolact.config import DetectConfig
from yolact.model import Yolact, YolactOutput
from yolact.model.boxes import crop_window, decode, iou


class Detections(NamedTuple):
    """The best K detections of each of N images, by score; zero past `count`.

    Attributes:
        count: (N,) int32.
        boxes: (N, K, 4) float32, x1 y1 x2 y2 relative to the image, as decoded (they may leave 0..1).
        scores: (N, K) float32.
        classes: (N, K) int32, 0-based, without background.
        coefficients: (N, K, M) float32.
        prototypes: (N, Hp, Wp, M) float32.
        mask_scores: (N, K) float32: `scores`, times the predicted mask IoU if the model re-scores.
    """

    count: Tensor  # type: ignore[assignment]
    boxes: Tensor
    scores: Tensor
    classes: Tensor
    coefficients: Tensor
    prototypes: Tensor
    mask_scores: Tensor


class _Kept(NamedTuple):
    """What NMS keeps: scores (N, K'), -1 for an empty row; classes and prior indices (N, K') int64."""

    scores: Tensor
    classes: Tensor
    priors: Tensor


def detect(
    model: Yolact,
    output: YolactOutput,
    config: DetectConfig | None = None,
    compact: bool = True,
    classes: Collection[int] | Tensor | None = None,
) -> Detections:
    """Decode boxes, apply NMS and, for YOLACT++, re-score masks.

    Args:
        model: Has the priors, the mask IoU net and, if `config` is None, the settings.
        output: Raw outputs of `model`.
        config: Thresholds, limits and the kind of NMS.
        compact: Drop the priors below the score threshold before sorting, so that shapes depend on
            the data. The exported graph turns this off: its shapes are fixed, and it sorts with TopK,
            which orders equal scores by their indices, as the stable sort here does.
        classes: 0-based indices of the wanted classes; None for all. The others are left out before NMS, so
            they suppress nothing. In cross-class NMS a prior has the best of all its classes, and is left
            out if this one is not wanted. Or a mask (C,) bool of the wanted classes: the same result, with
            shapes that do not depend on it.

    Returns:
        The best `max_detections` of every image.
    """
    config = config or model.config.detect
    scores = output.logits.softmax(dim=-1)[..., 1:]  # (N, P, C)
    boxes = decode(output.loc, model.priors)  # (N, P, 4)
    wanted, columns = None, None
    if isinstance(classes, Tensor):
        wanted = classes
    elif classes is not None:
        columns = torch.tensor(sorted(classes), device=scores.device)
    if config.nms == "cross_class":
        best, labels = scores.max(dim=-1)  # (N, P)
        keep = best > config.score_threshold
        if wanted is not None:
            keep = keep & wanted[labels]
        if columns is not None:
            keep = keep & torch.isin(labels, columns)
        kept = _fast_nms(boxes, best[..., None], keep, config, compact)
        kept = kept._replace(classes=labels.gather(1, kept.priors))
    else:
        keep = scores.amax(dim=-1) > config.score_threshold  # (N, P)
        if wanted is not None:
            scores = torch.where(wanted, scores, -1.0)
        if columns is not None:
            scores = scores[..., columns]
        if config.nms == "traditional":
            kept = _traditional_nms(boxes, scores, config, model.config.model.input_shape)
        else:
            kept = _fast_nms(boxes, scores, keep, config, compact)
        if columns is not None:
            kept = kept._replace(classes=columns[kept.classes])

    missing = config.max_detections - _fixed(kept.scores.shape[1])
    if missing > 0:
        kept = _Kept(*(F.pad(t, (0, missing), value=v) for t, v in zip(kept, (-1.0, 0, 0), strict=True)))
    valid = kept.scores >= 0  # (N, K)
    detections = Detections(
        count=valid.sum(dim=1, dtype=torch.int32),
        boxes=_pick(boxes, kept.priors) * valid[..., None],
        scores=kept.scores.clamp(min=0),
        classes=(kept.classes * valid).int(),
        coefficients=_pick(output.coefficients, kept.priors) * valid[..., None],
        prototypes=output.prototypes,
        mask_scores=kept.scores.clamp(min=0),
    )
    return rescore(model, detections) if model.config.model.mask_iou else detections


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (N, K) of values (N, P, V): (N, K, V)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _fixed(size: int) -> int:
    """A size that does not depend on the batch, as a constant of a traced graph, where sizes are tensors."""
    return int(size)


def _best(scores: Tensor, k: int, compact: bool) -> tuple[Tensor, Tensor]:
    """The k highest along the last dimension and their indices; equal ones keep their order."""
    k = min(k, _fixed(scores.shape[-1]))
    if not compact:
        return scores.topk(k, dim=-1)
    values, index = scores.sort(dim=-1, descending=True, stable=True)
    return values[..., :k], index[..., :k]


def _fast_nms(boxes: Tensor, scores: Tensor, keep: Tensor, config: DetectConfig, compact: bool) -> _Kept:
    """Fast NMS (YOLACT, Sec. 5): drop a box if any better one of its class overlaps it, kept or not.

    Args:
        boxes: (N, P, 4) relative corners.
        scores: (N, P, C).
        keep: (N, P) bool, the priors that take part.
        config: Thresholds and limits.
        compact: As in `detect`.
    """
    images, _, num_classes = scores.shape
    scores = torch.where(keep[..., None], scores, -1.0)
    prior_index = None
    if compact:
        most = int(keep.sum(dim=1).max()) if images else 0
        prior_index = keep.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # (N, P')
        boxes, scores = _pick(boxes, prior_index), _pick(scores, prior_index)

    top, index = _best(scores.transpose(1, 2), config.nms_top_k, compact)  # both (N, C, k)
    k = _fixed(top.shape[-1])
    index = index.reshape(images, -1)  # (N, C*k)
    candidates = _pick(boxes, index).reshape(images, num_classes, k, 4)  # (N, C, k, 4)
    better = torch.ones(k, k, device=boxes.device, dtype=boxes.dtype).triu(diagonal=1)
    overlap = (iou(candidates, candidates) * better).amax(dim=-2) if k else top  # (N, C, k)
    survives = (overlap <= config.iou_threshold) & (top >= 0)
    flat = torch.where(survives, top, -1.0).reshape(images, -1)  # (N, C*k)
    best, order = _best(flat, config.max_detections, compact)  # both (N, K')
    priors = index.gather(1, order)  # (N, K')
    if prior_index is not None:
        priors = prior_index.gather(1, priors)
    return _Kept(best, order.div(max(k, 1), rounding_mode="trunc"), priors)


def _traditional_nms(
    boxes: Tensor, scores: Tensor, config: DetectConfig, input_shape: tuple[int, int]
) -> _Kept:
    """Sequential NMS of each class: drop a box if a better one that is kept overlaps it; as `_fast_nms`.

    `input_shape` is the height and width of the network's input in pixels.
    """
    images, num_priors, num_classes = scores.shape
    image, prior, cls = (scores > config.score_threshold).nonzero(as_tuple=True)  # each (n,)
    # The original counts pixels inclusively: a box is one pixel wider than the difference of its corners.
    # In double precision, as batched_nms separates the groups by adding offsets.
    sides = boxes.new_tensor([*input_shape[::-1]] * 2, dtype=torch.double)
    pixels = boxes[image, prior].double() * sides + boxes.new_tensor([0, 0, 1, 1], dtype=torch.double)
    values = scores[image, prior, cls]
    order = batched_nms(pixels, values.double(), image * num_classes + cls, config.iou_threshold)
    flat = boxes.new_full((images, num_priors * num_classes), -1.0)  # (N, P*C)
    flat[image[order], prior[order] * num_classes + cls[order]] = values[order]
    best, where = flat.topk(min(config.max_detections, flat.shape[1]), dim=-1)
    return _Kept(best, where % num_classes, where.div(num_classes, rounding_mode="floor"))


def assemble_masks(coefficients: Tensor, prototypes: Tensor, boxes: Tensor) -> Tensor:
    """Masks at prototype size: sigmoid(P c), zero outside the box (YOLACT, Sec. 3.3).

    Args:
        coefficients: (N, K, M).
        prototypes: (N, Hp, Wp, M).
        boxes: (N, K, 4) relative corners.

    Returns:
        (N, K, Hp, Wp) in 0..1.
    """
    size = prototypes.shape[1], prototypes.shape[2]
    masks = coefficients @ prototypes.flatten(1, 2).transpose(1, 2)  # (N, K, Hp*Wp)
    masks = masks.sigmoid().unflatten(-1, size)  # (N, K, Hp, Wp)
    return masks * crop_window(boxes, size)


def rescore(model: Yolact, detections: Detections) -> Detections:
    """Multiply mask scores by the IoU that the mask IoU net predicts (YOLACT++, Sec. 6.1)."""
    masks = assemble_masks(detections.coefficients, detections.prototypes, detections.boxes)
    images, k = masks.shape[:2]
    predicted = model.maskiou_net(masks.flatten(0, 1)[:, None])  # (N*K, C)
    predicted = predicted.reshape(images, k, -1)  # (N, K, C)
    factor = predicted.gather(2, detections.classes.long()[..., None])[..., 0]  # (N, K)
    return detections._replace(mask_scores=detections.scores * factor)
