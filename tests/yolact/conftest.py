"""A small COCO dataset from arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

CATEGORIES = ({"id": 0, "name": "nut"}, {"id": 7, "name": "bolt"})


def square(x: float, y: float, side: float, image_id: int = 1, category_id: int = 7, **more: Any) -> dict:
    """An annotation of an axis-parallel square."""
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, side, side],
        "area": side * side,
        "iscrowd": 0,
        "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]],
        **more,
    }


@pytest.fixture
def make_square() -> Callable[..., dict]:
    return square


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write images (arrays, or (height, width)) with ids 1, 2, .. and annotations; returns (images, JSON)."""

    def write(
        images: Sequence[Any],
        annotations: Sequence[dict],
        categories: Sequence[dict] = CATEGORIES,
        **changes: Any,
    ) -> tuple[Path, Path]:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        entries = []
        for number, image in enumerate(images, start=1):
            if isinstance(image, tuple):
                image = np.full((*image, 3), 127, np.uint8)
            cv2.imwrite(str(folder / f"{number}.png"), image)
            height, width = image.shape[:2]
            entries.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        content = {
            "images": entries,
            "annotations": [{"id": 100 + i, **a} for i, a in enumerate(annotations)],
            "categories": list(categories),
            **changes,
        }
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return folder, path

    return write
