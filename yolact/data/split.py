"""Hold out a part of a dataset's images for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from yolact_runtime.errors import UsageError


def held_out(images: Iterable[Mapping[str, Any]], fraction: float, seed: int) -> set[int]:
    """Ids of the images to validate on: at least one, and never all.

    The choice depends on `seed` and file names only, not on ids or on the order of the file.

    Args:
        images: Image records of a COCO annotation file, each with `id` and `file_name`.
        fraction: Part of the images, above 0 and below 1.
        seed: Random seed.

    Raises:
        UsageError: there is a single image, or the fraction is out of range.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"--val-fraction {fraction}; allowed: above 0 and below 1")
    ranked = sorted(
        (
            hashlib.sha256(f"{seed}/{image['file_name']}".encode("utf-8", "surrogatepass")).digest(),
            image["id"],
        )
        for image in images
    )
    if len(ranked) < 2:
        raise UsageError(f"--val-fraction {fraction}: the dataset has a single image")
    count = min(max(1, round(len(ranked) * fraction)), len(ranked) - 1)
    return {number for _, number in ranked[:count]}
