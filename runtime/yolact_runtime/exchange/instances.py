"""What other tools get of an instance, and outlines that people can edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from yolact_runtime.errors import UsageError
from yolact_runtime.masks import Region, polygons
from yolact_runtime.rle import region_of, tight

# Exact outlines run along the borders of pixels, with two points for every step of a slope. One pixel beside
# them, a tenth of the points is left.
TOLERANCE = 1.0
FARTHEST = 100.0


class Instance(NamedTuple):
    """One instance.

    Attributes:
        label: The name of its class.
        score: Of its mask, 0..1.
        mask: Its mask, or the exact outlines of it as flat [x, y, x, y, ...] in pixels.
        track_id: Its track; None without.
    """

    label: str
    score: float
    mask: Region | list[list[float]]
    track_id: int | None = None

    def region(self, height: int, width: int) -> Region:
        """The mask in an image of `height` x `width`, in the smallest rectangle around it.

        Holes that outlines lost stay filled.
        """
        if isinstance(self.mask, Region):
            return tight(self.mask.edges, height)
        merged = coco_mask.merge(coco_mask.frPyObjects(self.mask, height, width))
        return region_of({"size": [height, width], "counts": merged["counts"]})

    def outlines(self, tolerance: float = TOLERANCE) -> list[np.ndarray]:
        """A polygon (points, 2) float of x, y in pixels for each connected component; none of an empty mask.

        Args:
            tolerance: Farthest distance in pixels from the exact outline, which 0 gives.
        """
        exact = polygons(self.mask) if isinstance(self.mask, Region) else self.mask
        return [_simplified(np.reshape(one, (-1, 2)), tolerance) for one in exact]


def instances_of(
    entries: Sequence[dict[str, Any]], names: Mapping[int, str], default: str = ""
) -> list[Instance]:
    """The instances of an image from entries of COCO results; those with an empty mask are left out.

    Args:
        entries: With masks, as `Result.to_coco` returns them, or from a line of JSON Lines.
        names: The class name of each category id.
        default: The name of ids that are not in `names`.

    Raises:
        ValueError: a mask is damaged.
    """
    found = []
    for entry in entries:
        segmentation = entry["segmentation"]
        mask = segmentation if isinstance(segmentation, list) else region_of(segmentation)
        if not isinstance(mask, Region) or len(mask.edges):
            label = names.get(entry["category_id"], default)
            track = entry.get("track_id")
            track = None if track is None or track < 0 else track
            found.append(Instance(label, entry["score"], mask, track))
    return found


def check_tolerance(tolerance: float, name: str = "tolerance") -> None:
    """Raise a UsageError if the tolerance `name` of outlines is not within 0 and 100 pixels."""
    if not (isinstance(tolerance, Real) and 0 <= tolerance <= FARTHEST):
        raise UsageError(f"{name} is {tolerance!r}; it must be in 0..{FARTHEST:g} pixels")


def _simplified(points: np.ndarray, tolerance: float) -> np.ndarray:
    """The points (n, 2) without those that a line within the tolerance replaces; at least three."""
    step = tolerance
    # OpenCV measures from the line through two points, also beyond them; at a spike that is too little.
    while step >= tolerance / 16 > 0:
        simple = cv2.approxPolyDP(points[:, None].astype(np.float32), step, closed=True)[:, 0]
        simple = simple.astype(np.float64)
        if len(simple) >= 3 and _farthest(points, simple) <= tolerance + 1e-6:
            return simple
        step /= 2
    return points


def _farthest(points: np.ndarray, simple: np.ndarray) -> float:
    """The longest distance of points (n, 2) from the lines between some of them, (m, 2) in their order."""
    keys = (points @ (1 << 20, 1)).tolist()
    wanted = (simple @ (1 << 20, 1)).tolist()
    first = keys.index(wanted[0])
    points, keys = np.roll(points, -first, axis=0), keys[first:] + keys[:first]
    places = [0]
    try:
        for key in wanted[1:]:
            places.append(keys.index(key, places[-1] + 1))
    except ValueError:  # an outline that touches itself began at its other visit to the first point
        return float("inf")
    lines = np.repeat(np.arange(len(simple)), np.diff(places, append=len(points)))
    start, along = simple[lines], (np.roll(simple, -1, axis=0) - simple)[lines]
    offset = points - start
    length = np.maximum((along**2).sum(1), 1e-12)
    share = np.clip((offset * along).sum(1) / length, 0, 1)
    return float(np.linalg.norm(offset - share[:, None] * along, axis=1).max())
