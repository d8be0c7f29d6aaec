"""Which ground truth every prior is trained towards (SSD, Sec. 2.2, with a neutral band and crowds).

Takes time in proportion to instances times priors, and memory for a few instances at a time.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolact.config import LossConfig
from yolact.data.batch import Target
from yolact.model.boxes import areas, corners, intersection, iou, with_sides_of_at_least

NEUTRAL, BACKGROUND = -1, 0
# Shorter sides of a box, relative to the image, count as this, so that the regression, which takes their
# logarithm, keeps its usual size. It is the original's limit for instances.
MIN_SIDE = 4 / 550
# Boxes that are compared with all priors at once: few enough for a CPU's cache.
_CHUNK = 8
# How many of an instance's best priors are listed at once.
_LISTED = 32


class Matches(NamedTuple):
    """What every prior of every image is trained towards.

    Attributes:
        classes: (B, P) int64: -1 neutral, 0 background, else class + 1.
        instances: (B, P) int64: index of the ground-truth instance with the highest overlap.
    """

    classes: Tensor
    instances: Tensor


def match(priors: Tensor, targets: Sequence[Target], config: LossConfig) -> Matches:
    """Assign ground truth to priors.

    Every instance gets the prior that overlaps it most, best pairs first. Other priors are positive from
    `positive_iou`, background below `negative_iou` and neutral in between. A prior that is not positive is
    neutral if more than `crowd_iou` of it lies in a crowd region.

    Args:
        priors: (P, 4): centre x, centre y, width, height.
        targets: One for each image.
        config: The thresholds.
    """
    point_priors = corners(priors)
    prior_areas = areas(point_priors)
    images = [_Image(point_priors, training_boxes(target.boxes)) for target in targets]
    # One read for all images: each makes the CPU wait for the GPU.
    lists = torch.cat([image.keys for image in images]).cpu().split([len(image.keys) for image in images])
    classes = []
    for image, target, keys in zip(images, targets, lists, strict=True):
        image.give_best_priors(keys)
        if len(target.labels):
            found = target.labels[image.instances] + 1
            found[image.best < config.positive_iou] = NEUTRAL
            found[image.best < config.negative_iou] = BACKGROUND
        else:
            found = torch.zeros_like(image.instances)
        for crowds in target.crowd_boxes.split(_CHUNK) if len(target.crowd_boxes) else ():
            inside = intersection(point_priors, crowds) / prior_areas[:, None]  # (P, q)
            found[(found <= BACKGROUND) & (inside.amax(dim=-1) > config.crowd_iou)] = NEUTRAL
        classes.append(found)
    return Matches(torch.stack(classes), torch.stack([image.instances for image in images]))


def training_boxes(boxes: Tensor) -> Tensor:
    """Ground-truth boxes (..., 4) as they are trained on: inside the image, sides of `MIN_SIDE` or more."""
    return with_sides_of_at_least(boxes.clamp(0, 1), MIN_SIDE)


class _Image:
    """Overlaps of the priors of an image with its instances.

    Args:
        priors: (P, 4) corners.
        boxes: (G, 4) corners.

    Attributes:
        best: (P,) highest IoU of each prior; 2 for a prior that was given to an instance.
        instances: (P,) int64, the instance with that IoU, the first of equal ones.
        keys: (G, 4 + k) int64: the bits of each instance's box, and its k strongest pairs in `_keys`.
    """

    def __init__(self, priors: Tensor, boxes: Tensor) -> None:
        self.priors, self.boxes = priors, boxes
        self.best = priors.new_full((len(priors),), -1.0)
        self.instances = torch.zeros(len(priors), dtype=torch.int64, device=priors.device)
        keys = [self.instances.new_zeros(0, min(_LISTED, len(priors)))]  # (0, k)
        for start in range(0, len(boxes), _CHUNK):
            overlap = iou(boxes[start : start + _CHUNK], priors)  # (g, P)
            values, rows = overlap.max(dim=0)  # (P,)
            better = values > self.best
            self.best = torch.where(better, values, self.best)
            self.instances = torch.where(better, rows + start, self.instances)
            keys.append(_strongest(_keys(overlap), _LISTED))
        self.keys = torch.cat([boxes.view(torch.int32).long(), torch.cat(keys)], dim=1)

    def give_best_priors(self, keys: Tensor) -> None:
        """Give each instance its best free prior, the best pair of the image first.

        Instances with the same box want the same priors, and share one list of them.

        Args:
            keys: `self.keys` on the CPU.
        """
        count = len(self.priors)
        rows = keys.tolist()
        members: dict[tuple[int, ...], list[int]] = {}
        for index in range(len(rows) - 1, -1, -1):
            members.setdefault(tuple(rows[index][:4]), []).append(index)  # the first one last
        lists = {box: rows[indices[-1]][:3:-1] for box, indices in members.items()}  # the strongest last
        # The strongest pair that may be free, the first instance of equal overlaps.
        heap = [(-(lists[box][-1] // count), indices[-1], box) for box, indices in members.items()]
        heapq.heapify(heap)
        owners: dict[int, int] = {}
        while heap and len(owners) < count:
            _, index, box = heap[0]
            key = lists[box].pop()
            prior = count - 1 - key % count
            if prior not in owners:
                owners[prior] = members[box].pop()
            if not members[box]:
                heapq.heappop(heap)
                continue
            lists[box] = lists[box] or self._after(index, key)
            if lists[box]:
                heapq.heapreplace(heap, (-(lists[box][-1] // count), members[box][-1], box))
            else:
                heapq.heappop(heap)  # no prior is left for it
        if owners:
            taken = torch.tensor(list(owners), device=self.best.device)
            self.best[taken] = 2.0
            self.instances[taken] = torch.tensor(list(owners.values()), device=self.best.device)

    def _after(self, index: int, key: int) -> list[int]:
        """The strongest keys of an instance below `key`, ascending."""
        keys = _keys(iou(self.boxes[index : index + 1], self.priors))[0]  # (P,)
        return _strongest(keys[keys < key], 32 * _LISTED).tolist()[::-1]


def _keys(overlap: Tensor) -> Tensor:
    """A number (g, P) int64 for each pair, larger for a higher IoU, then for a lower index of the prior."""
    count = overlap.shape[1]
    places = torch.arange(count - 1, -1, -1, device=overlap.device)
    # The bits of floats that are not negative are in the order of their values.
    return overlap.view(torch.int32).long() * count + places


def _strongest(keys: Tensor, most: int) -> Tensor:
    """The highest keys of the last axis, at most `most`, in descending order."""
    return keys.topk(min(most, keys.shape[-1])).values
