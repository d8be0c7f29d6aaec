"""Results whose masks have holes, several components and ragged borders, and one that is empty."""

import cv2
import numpy as np

from yolact_runtime import Result

NAMES = ("cat", 'a "b" <&>', "大")


def scene(seed=0, height=117, width=203, n=6, tracks=None):
    """A result of n instances; the last has an empty mask."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((40, 50, 4)).astype(np.float32)
    corners = np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4)
    boxes = corners + np.array([-0.1, -0.1, 0.1, 0.1])
    boxes[0] = (-0.1, -0.1, 1.2, 1.3)  # reaches every border of the image
    boxes[-1] = (2, 2, 3, 3)
    return Result(
        height=height,
        width=width,
        relative_boxes=boxes.astype(np.float32),
        scores=np.linspace(0.95, 0.4, n).astype(np.float32),
        mask_scores=np.linspace(0.9, 0.3, n).astype(np.float32),
        classes=rng.integers(0, len(NAMES), n),
        coefficients=(10 * rng.standard_normal((n, 4))).astype(np.float32),
        prototypes=cv2.GaussianBlur(noise, (7, 7), 0),
        class_names=NAMES,
        class_ids=(7, 3, 44),
        track_ids=tracks,
    )


def nothing(height=20, width=30):
    """A result without instances."""
    one = scene(height=height, width=width)
    empty = {
        name: getattr(one, name)[:0]
        for name in ("relative_boxes", "scores", "mask_scores", "classes", "coefficients")
    }
    return Result(height, width, **empty, prototypes=one.prototypes, class_names=NAMES, class_ids=(7, 3, 44))
