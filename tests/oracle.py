"""Detection and masks in plain, slow float64 NumPy: what every implementation is compared with.

Written from the paper's description alone, with loops over classes and detections, and shares no code
with the packages under test.
"""

from __future__ import annotations

import math

import numpy as np


def softmax(logits):
    """(P, C) -> (P, C) float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def priors(height, width, scales, aspect_ratios, square):
    """Prior boxes of an input of `height` x `width` pixels: (P, 4) cx cy w h relative to it.

    Args:
        height, width: Of the input; P3 has a cell for 8 x 8 pixels, P4 for 16 x 16, ..., rounded up.
        scales: Box sizes of each level in pixels.
        aspect_ratios: Width over height.
        square: The original's bug: boxes are as high as they are wide.
    """
    boxes = []
    for level, sizes in enumerate(scales):
        rows, columns = (math.ceil(side / 2 ** (3 + level)) for side in (height, width))
        for row in range(rows):
            for column in range(columns):
                for size in sizes:
                    for ratio in aspect_ratios:
                        wide, high = size * math.sqrt(ratio), size / math.sqrt(ratio)
                        centre = (column + 0.5) / columns, (row + 0.5) / rows
                        boxes.append((*centre, wide / width, (wide if square else high) / height))
    return np.array(boxes)


def resize(image, height, width):
    """An image (H, W, 3) at another size, bilinear with half-pixel centres: (height, width, 3) float64."""
    vertical, horizontal = _axis(image.shape[0], height), _axis(image.shape[1], width)
    return np.einsum("yh,hwc,xw->yxc", vertical, image.astype(np.float64), horizontal, optimize=True)


def decode(loc, priors):
    """Offsets (P, 4) relative to priors (cx, cy, w, h) -> (P, 4) x1 y1 x2 y2."""
    loc, priors = np.asarray(loc, np.float64), np.asarray(priors, np.float64)
    centre = priors[:, :2] + loc[:, :2] * 0.1 * priors[:, 2:]
    size = priors[:, 2:] * np.exp(loc[:, 2:] * 0.2)
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)


def iou(a, b):
    """Intersection over union of two boxes; 0 where the union has no area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else 0.0


def fast_nms(boxes, scores, iou_threshold=0.5, top_k=200, limit=100):
    """Fast NMS of boxes (n, 4) with foreground scores (n, C).

    Returns:
        Rows (index of the box, class, score), best first; equal scores by class, then by index.
    """
    kept = []
    for cls in range(scores.shape[1]):
        order = sorted(range(len(boxes)), key=lambda i: (-scores[i, cls], i))[:top_k]
        for position, i in enumerate(order):
            if all(iou(boxes[j], boxes[i]) <= iou_threshold for j in order[:position]):
                kept.append((i, cls, scores[i, cls]))
    return sorted(kept, key=lambda row: (-row[2], row[1], row[0]))[:limit]


def detect(loc, logits, coefficients, priors, score_threshold=0.05, **limits):
    """Raw heads of one image -> dict of boxes, scores, classes, coefficients, best score first."""
    scores = softmax(logits)[:, 1:]
    keep = scores.max(axis=1) > score_threshold
    boxes, scores, coefficients = decode(loc, priors)[keep], scores[keep], np.asarray(coefficients)[keep]
    rows = fast_nms(boxes, scores, **limits)
    index = [row[0] for row in rows]
    return {
        "boxes": boxes[index].reshape(-1, 4),
        "scores": np.array([row[2] for row in rows]),
        "classes": np.array([row[1] for row in rows], int),
        "coefficients": coefficients[index],
    }


def _kept(low, high, cells):
    low, high = min(low * cells, high * cells), max(low * cells, high * cells)
    low, high = max(low - 1, 0), min(high + 1, cells)
    return np.array([low <= cell < high for cell in range(cells)], bool)


def assemble(coefficients, prototypes, boxes):
    """Masks at prototype resolution: (n, Hp, Wp) float64, zero outside the boxes."""
    prototypes = np.asarray(prototypes, np.float64)
    height, width = prototypes.shape[:2]
    masks = []
    for row, (x1, y1, x2, y2) in zip(np.asarray(coefficients, np.float64), boxes, strict=True):
        values = 1 / (1 + np.exp(-np.clip(prototypes @ row, -500, 500)))
        # The bounds are float32 in every implementation; float64 ones would put rare edges elsewhere.
        inside = _kept(np.float32(y1), np.float32(y2), height)[:, None] & _kept(
            np.float32(x1), np.float32(x2), width
        )
        masks.append(values * inside)
    return np.array(masks).reshape(-1, height, width)


def _axis(cells, pixels):
    rows = np.zeros((pixels, cells))
    for pixel in range(pixels):
        where = max((pixel + 0.5) * cells / pixels - 0.5, 0)
        low = min(math.floor(where), cells - 1)
        rows[pixel, low] += 1 - (where - low)
        rows[pixel, min(low + 1, cells - 1)] += where - low
    return rows


def enlarge(masks, height, width):
    """Bilinear with half-pixel centres: (n, Hp, Wp) -> (n, height, width) float64."""
    vertical, horizontal = _axis(masks.shape[1], height), _axis(masks.shape[2], width)
    return np.array([vertical @ mask @ horizontal.T for mask in masks]).reshape(-1, height, width)


def full_masks(coefficients, prototypes, boxes, height, width):
    """Soft masks at image size; a mask is where they exceed 0.5."""
    return enlarge(assemble(coefficients, prototypes, boxes), height, width)


def run_lengths(mask):
    """COCO's uncompressed counts of a (H, W) mask: column by column, unset first."""
    counts, current, length = [], False, 0
    for value in np.asarray(mask, bool).T.ravel():
        if value != current:
            counts.append(length)
            current, length = bool(value), 0
        length += 1
    return [*counts, length]


def downsample_masks(masks, size):
    """Binary masks (G, H, W) as the original makes its mask targets, bool tensor (G, *size)."""
    import torch

    masks = torch.as_tensor(masks)
    if len(masks) == 0:
        return torch.zeros((0, *size), dtype=torch.bool)
    small = torch.nn.functional.interpolate(masks[None].float(), size, mode="bilinear", align_corners=False)
    return small[0] > 0.5


def losses(priors, outputs, targets, matches, weights=(1.5, 1, 6.125, 1)):
    """Box, class, mask and semantic loss of a batch (YOLACT, Sec. 3.3 and 5), image by image.

    Args:
        priors: (P, 4).
        outputs: For each image loc, logits, coefficients, prototypes and semantic logits (C, H3, W3).
        targets: For each image boxes, labels, masks, semantic masks.
        matches: For each image what each prior learns (-1 nothing, 0 background, or the label + 1), and the
            instance.
        weights: Of the four terms.
    """
    terms, total = np.zeros(4), 0
    for output, target, (classes, instances) in zip(outputs, targets, matches, strict=True):
        loc, logits, coefficients, prototypes, semantic = (np.float64(part) for part in output)
        boxes, labels, masks, regions = target
        positive = np.flatnonzero(classes > 0)
        total += len(positive)
        entropy = -np.log(softmax(logits))
        hard = sorted(np.flatnonzero(classes == 0), key=lambda prior: -entropy[prior, 0])
        for prior in [*positive, *hard[: 3 * len(positive)]]:
            terms[1] += entropy[prior, classes[prior]]
        height, width = prototypes.shape[:2]
        for prior in positive:
            box, truth = boxes[instances[prior]], np.asarray(masks[instances[prior]], bool)
            x1, y1, x2, y2 = np.float64(box)
            cx, cy, w, h = np.float64(priors[prior])
            centre = [((x1 + x2) / 2 - cx) / (0.1 * w), ((y1 + y2) / 2 - cy) / (0.1 * h)]
            size = [math.log((x2 - x1) / w) / 0.2, math.log((y2 - y1) / h) / 0.2]
            error = np.abs(loc[prior] - [*centre, *size])
            terms[0] += np.where(error < 1, error**2 / 2, error - 0.5).sum()
            (mask,) = assemble(coefficients[prior][None], prototypes, box[None])
            right = np.where(truth, mask, 1 - mask)[mask > 0]  # it is 0 outside the box
            terms[2] -= np.log(right).sum() / ((x2 - x1) * (y2 - y1)) / (height * width)
        for cls, values in enumerate(semantic):
            of_class = [region for region, label in zip(regions, labels, strict=True) if label == cls]
            truth = np.any(of_class, axis=0) if of_class else np.zeros(values.shape, bool)
            terms[3] += np.logaddexp(0, np.where(truth, -values, values)).mean()
    return terms * weights / [total, total, total, len(targets)]
