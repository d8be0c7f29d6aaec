"""A picture for runs without images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from yolact_runtime.files import atomic_path


def made_image(path: Path, height: int = 480, width: int = 640) -> None:
    """Write a picture of coloured discs, the same one every time."""
    random = np.random.default_rng(0)
    picture = np.full((height, width, 3), 96, np.uint8)
    for _ in range(40):
        centre = random.integers(0, [width, height]).tolist()
        colour = random.integers(0, 256, 3).tolist()
        cv2.circle(picture, centre, int(random.integers(10, 90)), colour, -1, cv2.LINE_AA)
    _, data = cv2.imencode(path.suffix, picture)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())
