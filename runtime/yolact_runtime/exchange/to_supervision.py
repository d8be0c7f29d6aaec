"""supervision's `Detections`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_runtime.packages import imports_failed
from yolact_runtime.rle import inner_bounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervision import Detections
    from supervision.detection.compact_mask import CompactMask

    from yolact_runtime.masks import Region

WHAT = "Result.to_supervision()"


def supervision_detections(mask: np.ndarray | CompactMask, fields: dict[str, Any]) -> Detections:
    """`supervision.Detections` with these fields; raises a YolactError without the package."""
    try:
        from supervision import Detections
    except ImportError as error:
        raise imports_failed(error, WHAT) from error
    return Detections(mask=mask, **fields)


def compact_masks(regions: Sequence[Region], height: int, width: int) -> CompactMask:
    """The masks as supervision's `CompactMask`: the runs inside the rectangle of each mask."""
    try:
        from supervision.detection.compact_mask import CompactMask
    except ImportError as error:
        raise imports_failed(error, WHAT) from error
    rles, shapes, corners = [], [], []
    for region in regions:
        # It has no masks without pixels: an empty one is a pixel that is not set.
        full = len(region.edges) > 0
        rles.append(np.diff(inner_bounds(region) if full else [1], prepend=0).astype(np.int32))
        shapes.append((region.height, region.width) if full else (1, 1))
        corners.append((region.x, region.y) if full else (0, 0))
    return CompactMask(
        rles,
        np.array(shapes, np.int32).reshape(-1, 2),
        np.array(corners, np.int32).reshape(-1, 2),
        (height, width),
    )
