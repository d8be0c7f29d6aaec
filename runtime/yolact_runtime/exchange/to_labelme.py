"""Files of labelme, one for each image."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from yolact_runtime.errors import YolactError
from yolact_runtime.exchange.instances import TOLERANCE, Instance
from yolact_runtime.masks import Region

# The first version with masks has this format, and later ones read it.
VERSION = "5.3.0"


def labelme_content(
    instances: Iterable[Instance],
    height: int,
    width: int,
    image_path: str,
    masks: bool = False,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """The content of a labelme file.

    Args:
        instances: The instances.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        image_path: The image, relative to the folder of the labelme file.
        masks: Exact masks instead of polygons.
        tolerance: Of the polygons, in pixels, as for `Instance.outlines`.
    """
    shapes = []
    for row, instance in enumerate(instances):
        if masks:
            parts = [_mask_shape(instance.region(height, width))]
        else:
            parts = [
                {"points": points.tolist(), "shape_type": "polygon", "mask": None}
                for points in instance.outlines(tolerance)
            ]
        track = "" if instance.track_id is None else f"track {instance.track_id}"
        shapes += [
            {
                "label": instance.label,
                "points": part["points"],
                # What belongs together has an equal group id.
                "group_id": row if len(parts) > 1 else None,
                "description": track,
                "shape_type": part["shape_type"],
                "flags": {},
                "mask": part["mask"],
                # labelme keeps what it does not know.
                "score": instance.score,
            }
            for part in parts
        ]
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _mask_shape(region: Region) -> dict[str, Any]:
    """The points and the PNG of a mask: 0 and 1 in the rectangle from the first point to the last."""
    done, data = cv2.imencode(".png", region.mask.astype(np.uint8))
    if not done:
        raise YolactError(f"OpenCV cannot encode a mask of {region.width} x {region.height} as PNG")
    right, bottom = region.x + region.width - 1, region.y + region.height - 1
    return {
        "points": [[float(region.x), float(region.y)], [float(right), float(bottom)]],
        "shape_type": "mask",
        "mask": base64.b64encode(data.tobytes()).decode("ascii"),
    }
