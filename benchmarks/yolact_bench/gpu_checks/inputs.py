"""Random inputs of the kernels and of engines; needs NumPy and OpenCV only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

DIGITS = 3  # coefficients that spell a prior's index to base 64, exact in half precision
# Larger and smaller than the input, upright and square; an enlarged one, too.
SIZES = ((120, 160), (97, 203), (240, 320), (64, 64), (333, 111))


@dataclass(frozen=True)
class Heads:
    """Inputs of detection: loc (N, P, 4), logits (N, P, C+1), priors (P, 4)."""

    loc: np.ndarray
    logits: np.ndarray
    priors: np.ndarray

    @property
    def coefficients(self) -> np.ndarray:
        """(N, P, DIGITS): they say which prior a detection comes from."""
        n, p = self.logits.shape[:2]
        index = np.arange(p)[:, None] // 64 ** np.arange(DIGITS) % 64
        return np.broadcast_to(index.astype(self.loc.dtype), (n, p, DIGITS))

    def half(self) -> Heads:
        """With loc and logits rounded to float16."""
        return Heads(self.loc.astype(np.float16), self.logits.astype(np.float16), self.priors)

    @property
    def buffers(self) -> dict[str, np.ndarray]:
        """The inputs of a detection plan, by name."""
        coefficients = np.ascontiguousarray(self.coefficients)
        return {"loc": self.loc, "logits": self.logits, "coefficients": coefficients, "priors": self.priors}


def indices_of(coefficients: np.ndarray) -> np.ndarray:
    """Prior indices from what `Heads.coefficients` gave."""
    return (coefficients.astype(np.int64) * 64 ** np.arange(DIGITS)).sum(axis=-1)


def make_heads(
    seed: int, priors: int, classes: int, batch: int = 1, background: float = 2.0, spread: float = 2.0
) -> Heads:
    """Random heads; the larger `background`, the fewer priors pass."""
    rng = np.random.default_rng(seed)
    centres, sizes = rng.uniform(0, 1, (priors, 2)), rng.uniform(0.05, 0.5, (priors, 2))
    logits = rng.standard_normal((batch, priors, classes + 1), np.float32) * np.float32(spread)
    logits[..., 0] += np.float32(background)
    return Heads(
        rng.standard_normal((batch, priors, 4), np.float32),
        logits,
        np.concatenate([centres, sizes], axis=1).astype(np.float32),
    )


def make_masks(
    seed: int, sizes: Sequence[tuple[int, int]], detections: int, cells: tuple[int, int], dtype: str,
    depth: int = 32,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Random inputs of a mask plan; the last image has fewer detections than the others.

    Args:
        seed: Of everything random.
        sizes: Height and width of each image.
        detections: K.
        cells: Rows and columns of the prototypes.
        dtype: Of the prototypes.
        depth: M, coefficients per detection.
    """
    rng, n = np.random.default_rng(seed), len(sizes)
    centres = rng.uniform(0, 1, (n, detections, 2))
    sides = rng.uniform(0.05, 0.8, (n, detections, 2))
    count = np.full(n, detections, np.int32)
    count[-1] = max(1, 2 * detections // 3)
    return {
        "boxes": np.concatenate([centres - sides / 2, centres + sides / 2], axis=2).astype(np.float32),
        "kept_coefficients": np.tanh(rng.normal(size=(n, detections, depth))).astype(np.float32),
        "count": count,
        "prototypes": np.maximum(rng.normal(size=(n, *cells, depth)), 0).astype(dtype),
        "sizes": np.array(sizes, np.int32),
    }


def make_images(count: int, seed: int = 11, sizes: Sequence[tuple[int, int]] = SIZES) -> list[np.ndarray]:
    """Images (H, W, 3) uint8 of coloured clouds, of these heights and widths in turn."""
    rng = np.random.default_rng(seed)
    images = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        cells = rng.integers(0, 256, (12, 16, 3), np.uint8)
        images.append(cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC))
    return images
