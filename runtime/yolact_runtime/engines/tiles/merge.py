"""One detection for each object from what overlapping tiles see of it.

Two tiles see the same pixels where they overlap. So two detections are of one object if their masks agree
there, however little of the object that is; boxes and the rest of the masks do not matter.

An object that some tile sees whole is taken from the tile with the best score, and what other tiles see of it
is dropped. Of an object that no tile sees whole, the parts are united.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from yolact_runtime.engines.tiles.windows import Window
from yolact_runtime.masks import Region, encode
from yolact_runtime.regions import area, area_within, move, union
from yolact_runtime.results import Result

# Masks agree where their intersection over union is at least this.
_AGREE = 0.5
# A part is covered by a detection which has this share of its pixels, and of its score.
_COVERED, _SCORE = 0.5, 0.5
# A detection is cut if it comes this close to the border of its tile, as a share of the tile's side: masks
# end up to two prototype cells before the border.
_MARGIN = 0.015
# A mask reaches out of another tile if less than this share of it is inside.
_INSIDE = 0.9


class View(NamedTuple):
    """A detection of one tile, in the image.

    Attributes:
        tile: Number of the tile.
        score: Box score.
        mask_score: Mask score.
        label: 0-based class.
        box: x1 y1 x2 y2 in pixels.
        region: The mask.
        cut: Whether the tile's border may cut the object off.
    """

    tile: int
    score: float
    mask_score: float
    label: int
    box: tuple[float, float, float, float]
    region: Region
    cut: bool


class _Link(NamedTuple):
    """Another view that shares pixels: how many, and how many each of both has in the other's tile."""

    other: int
    shared: int
    own_inside: int
    other_inside: int

    @property
    def agrees(self) -> bool:
        return self.shared >= _AGREE * (self.own_inside + self.other_inside - self.shared)


def views_of(result: Result, tile: int, window: Window, height: int, width: int) -> list[View]:
    """What a tile sees, in the image of `height` x `width` that it was cut from."""
    offset = np.array([window.left, window.top] * 2)
    boxes = (result.boxes_float.astype(np.float64) + offset).tolist()
    rows = zip(
        boxes, result.regions, result.scores.tolist(), result.mask_scores.tolist(), result.classes.tolist(),
        strict=True,
    )  # fmt: skip
    views = []
    for box, region, score, mask_score, label in rows:
        moved = move(region, window.left, window.top, height)
        cut = _is_cut(box, moved, window, height, width)
        views.append(View(tile, score, mask_score, label, tuple(box), moved, cut))
    return views


def _is_cut(box: Sequence[float], region: Region, window: Window, height: int, width: int) -> bool:
    """Whether box or mask come close to a border of the tile that is not one of the image."""
    left, top, right, bottom = box
    if region.width:
        left, top = min(left, region.x), min(top, region.y)
        right, bottom = max(right, region.x + region.width), max(bottom, region.y + region.height)
    across = _MARGIN * (window.right - window.left)
    down = _MARGIN * (window.bottom - window.top)
    return (
        (window.left > 0 and left - window.left <= across)
        or (window.top > 0 and top - window.top <= down)
        or (window.right < width and window.right - right <= across)
        or (window.bottom < height and window.bottom - bottom <= down)
    )


def merge(views: Sequence[View], windows: Sequence[Window]) -> list[View]:
    """One view for each object, best score first.

    Args:
        views: Those of all tiles, by tile, and best score first within it.
        windows: The tiles.
    """
    sizes = [area(view.region) for view in views]
    links = _links(views, sizes, windows)
    cut = _find_parts(views, sizes, links)
    # Whole ones first, then parts, the best of each first: sorting is stable, so ties go by tile.
    order = sorted(range(len(views)), key=lambda index: (cut[index], -views[index].score))
    scores = [view.score for view in views]
    group: dict[int, int] = {}  # of each view that is kept: the first one of its object
    for index in order:
        view = views[index]
        kept = [link for link in links[index] if link.other in group]
        same = [link.other for link in kept if link.agrees and views[link.other].label == view.label]
        whole = [other for other in same if not cut[other]]
        if whole:
            best = max(whole, key=lambda other: scores[other])
            scores[best] = max(scores[best], view.score)
        elif not cut[index]:
            group[index] = index
        elif not any(
            link.shared >= _COVERED * sizes[index] and views[link.other].score >= _SCORE * view.score
            for link in kept
            if not cut[link.other]
        ):
            _join(index, same, group)
    objects = defaultdict(list)
    for index, first in group.items():  # in the order above
        objects[first].append(index)
    found = [
        _unite([views[index] for index in parts], max(scores[index] for index in parts))
        for parts in objects.values()
    ]
    return sorted(found, key=lambda view: -view.score)


def _join(index: int, same: Sequence[int], group: dict[int, int]) -> None:
    """Add a part to the object that it agrees with; several objects become one, as it connects them."""
    if not same:
        group[index] = index
        return
    first, *others = dict.fromkeys(group[other] for other in same)
    if others:
        group.update({member: first for member, leader in group.items() if leader in others})
    group[index] = first


def _unite(parts: Sequence[View], score: float) -> View:
    """The object of some parts, the best one first; of each tile, the best part only."""
    best = list({part.tile: part for part in reversed(parts)}.values())
    boxes = np.array([part.box for part in best])
    box = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    region = best[0].region if len(best) == 1 else union([part.region for part in best])
    return parts[0]._replace(score=score, box=box, region=region)


def _find_parts(views: Sequence[View], sizes: Sequence[int], links: Sequence[Sequence[_Link]]) -> list[bool]:
    """Which views are parts: cut off, or agreeing with one that reaches out of their tile."""
    cut = [view.cut for view in views]
    for index, view in enumerate(views):
        for link in links[index]:
            other = views[link.other]
            if (
                other.label == view.label
                and link.agrees
                and link.own_inside >= _INSIDE * sizes[index]
                and link.other_inside < _INSIDE * sizes[link.other]
            ):
                cut[index] = True
    return cut


def _links(views: Sequence[View], sizes: Sequence[int], windows: Sequence[Window]) -> list[list[_Link]]:
    """For each view, the views of other tiles that share pixels with it; `sizes` are the areas of all."""
    links: list[list[_Link]] = [[] for _ in views]
    if not views:
        return links
    height = views[0].region.image_height
    width = max(view.region.x + view.region.width for view in views)
    rles = encode([view.region for view in views], height, width)

    @cache
    def inside(index: int, tile: int) -> int:
        return area_within(views[index].region, windows[tile])

    for one, others in _near(views):
        ious = coco_mask.iou([rles[one]], [rles[other] for other in others], [0] * len(others))[0].tolist()
        for other, iou in zip(others, ious, strict=True):
            shared = round(iou * (sizes[one] + sizes[other]) / (1 + iou))
            if shared:
                own, theirs = inside(one, views[other].tile), inside(other, views[one].tile)
                links[one].append(_Link(other, shared, own, theirs))
                links[other].append(_Link(one, shared, theirs, own))
    return links


def _near(views: Sequence[View]) -> Iterator[tuple[int, list[int]]]:
    """Views, and for each those of other tiles whose masks' rectangles overlap; each pair once."""
    index = np.array([number for number, view in enumerate(views) if len(view.region.edges)], np.int64)
    if not len(index):
        return
    corners = np.array([views[number].region[:4] for number in index])
    corners[:, 2:] += corners[:, :2]
    order = np.argsort(corners[:, 1], kind="stable")
    index, (left, top, right, bottom) = index[order], corners[order].T.copy()
    tile = np.array([views[number].tile for number in index])
    # Of the rectangles that begin below the top of one, those from its bottom on are too far down.
    for position, stop in enumerate(np.searchsorted(top, bottom).tolist()):
        below = slice(position + 1, stop)
        near = (left[below] < right[position]) & (right[below] > left[position])
        near &= tile[below] != tile[position]
        if near.any():
            yield int(index[position]), index[below][near].tolist()
