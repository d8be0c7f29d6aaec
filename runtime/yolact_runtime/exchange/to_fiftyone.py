"""FiftyOne's labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from yolact_runtime.exchange.instances import Instance
from yolact_runtime.packages import imports_failed

if TYPE_CHECKING:
    import numpy as np
    from fiftyone.core.labels import Detections

# Pixels. FiftyOne rounds corners in pixels down, so that 6.999999 would be 6.
_NUDGE = 1e-6


def fiftyone_detections(
    instances: Iterable[tuple[Instance, np.ndarray]], height: int, width: int
) -> Detections:
    """`fiftyone.core.labels.Detections`; raises a YolactError without the package.

    Args:
        instances: Each instance and its box x1 y1 x2 y2 in pixels, which one with an empty mask gets.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    try:
        from fiftyone.core.labels import Detection, Detections
    except ImportError as error:
        raise imports_failed(error, "Result.to_fiftyone()") from error
    found = []
    for instance, box in instances:
        region = instance.region(height, width)
        x1, y1, x2, y2 = box.tolist()
        detected = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
        # A mask fills its box: FiftyOne would stretch it to any other.
        full = len(region.edges) > 0
        left, top = (region.x + _NUDGE) / width, (region.y + _NUDGE) / height
        tight = [left, top, region.width / width, region.height / height]
        found.append(
            Detection(
                label=instance.label,
                bounding_box=tight if full else detected,
                mask=region.mask if full else None,
                confidence=instance.score,
                index=instance.track_id,
                detected_box=detected,
            )
        )
    return Detections(detections=found)
