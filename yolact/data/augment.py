"""The original's training augmentation: parameters are drawn first, then applied in one step.

The random generator of an image is seeded by (seed, epoch, index), so a sample does not depend on the process
that computes it, or on other samples. `yolact.config.AugmentConfig` describes the steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from yolact.config import AugmentConfig, ModelConfig
from yolact.data.geometry import Geometry, centres_in

# Number of crops to try before another minimum IoU is drawn.
_TRIES = 50


@dataclass(frozen=True)
class Photometric:
    """Colour changes: `(x + brightness) * contrast`, saturation and hue, then `* late_contrast`.

    Nothing is clipped in between or after, as in the original.

    Attributes:
        brightness: Counts of 0..255.
        contrast, saturation, late_contrast: Factors.
        hue: Degrees.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    late_contrast: float = 1.0

    def __call__(self, pixels: np.ndarray) -> None:
        """Change BGR pixels (h, w, 3) float32, values 0..255, in place."""
        coloured = self.saturation != 1 or self.hue != 0
        # If saturation and hue stay, both contrasts are one factor.
        factor = self.contrast if coloured else self.contrast * self.late_contrast
        if self.brightness:
            pixels += np.float32(self.brightness)
        if factor != 1:
            pixels *= np.float32(factor)
        if coloured and pixels.size:
            cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV, dst=pixels)
            if self.saturation != 1:
                pixels[..., 1] *= np.float32(self.saturation)
            if self.hue:
                # OpenCV wraps hues beyond 360 degrees, but not negative ones.
                pixels[..., 0] += np.float32(self.hue % 360)
            cv2.cvtColor(pixels, cv2.COLOR_HSV2BGR, dst=pixels)
            if self.late_contrast != 1:
                pixels *= np.float32(self.late_contrast)


class Augmenter:
    """Draws augmentations and applies them.

    Args:
        config: The random changes.
        model: Input size and normalisation.
        seed: Random seed.
    """

    def __init__(self, config: AugmentConfig, model: ModelConfig, seed: int) -> None:
        self.config = config
        self.model = model
        self.seed = seed
        self.fill = np.array(config.expand_fill, np.float32)  # BGR
        width = self.model.input_shape[1]
        # Of the values of a row, RGB.
        self._mean = np.tile(np.array(model.mean[::-1], np.float32), width)
        self._scale = np.tile(1 / np.array(model.std[::-1], np.float32), width)

    def draw(
        self, epoch: int, index: int, boxes: np.ndarray, crowd: np.ndarray, height: int, width: int
    ) -> tuple[Photometric, Geometry]:
        """The augmentation of image `index` in `epoch`; it depends on the arguments only.

        Args:
            epoch, index: Seed the generator.
            boxes: (n, 4) boxes of the image, x1 y1 x2 y2 in pixels.
            crowd: (n,) bool, which of them are crowds.
            height, width: Of the image.
        """
        rng = np.random.default_rng((self.seed % 2**64, epoch, index))
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        photometric = draw_photometric(rng, self.config)
        rows, columns = self.model.input_shape
        geometry = draw_geometry(rng, self.config, boxes[solid & ~crowd], height, width, rows / columns)
        return photometric, geometry

    def image(self, image: np.ndarray, photometric: Photometric, geometry: Geometry) -> np.ndarray:
        """Augment an image (h, w, 3) uint8 BGR: (H, W, 3) float32 BGR, values about 0..255."""
        pixels, inside = geometry.visible_pixels(image, self.fill)
        photometric(pixels[inside])
        resized = geometry.resize(pixels, image.shape[:2], self.model.input_size, self.fill)
        return geometry.turn_pixels(resized)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) float32 BGR as (3, H, W) float32 RGB, minus mean, over std; channels last in memory."""
        rgb = np.empty(pixels.shape, np.float32)
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=rgb)
        rows = rgb.reshape(len(rgb), -1)  # (H, W * 3)
        rows -= self._mean
        rows *= self._scale
        return rgb.transpose(2, 0, 1)


def draw_photometric(rng: np.random.Generator, config: AugmentConfig) -> Photometric:
    """Draw colour changes: each for half of the images, contrast before or after saturation and hue."""
    if not config.photometric:
        return Photometric()
    applied = rng.random(4) < 0.5
    contrast_first = rng.random() < 0.5
    brightness = rng.uniform(-config.brightness, config.brightness) if applied[0] else 0.0
    contrast = rng.uniform(*config.contrast) if applied[1] else 1.0
    saturation = rng.uniform(*config.saturation) if applied[2] else 1.0
    hue = rng.uniform(-config.hue, config.hue) if applied[3] else 0.0
    early, late = (contrast, 1.0) if contrast_first else (1.0, contrast)
    return Photometric(brightness, early, saturation, hue, late)


def draw_geometry(
    rng: np.random.Generator,
    config: AugmentConfig,
    boxes: np.ndarray,
    height: int,
    width: int,
    aspect: float = 1.0,
) -> Geometry:
    """Draw expansion, crop, mirror, flip and rotation.

    Args:
        rng: Random generator.
        config: The random changes.
        boxes: (n, 4) boxes of the instances, x1 y1 x2 y2 in pixels; without any, every crop is allowed.
        height, width: Of the image.
        aspect: Height / width of the network's input.
    """
    left = top = 0
    wide, high = width, height
    if config.expand and rng.random() < 0.5:
        ratio = rng.uniform(1, config.expand_ratio)
        wide, high = int(width * ratio), int(height * ratio)
        left, top = int(rng.uniform(0, width * (ratio - 1))), int(rng.uniform(0, height * (ratio - 1)))
        # Rounding must not cut the image.
        wide, high = max(wide, left + width), max(high, top + height)
    corner = np.array([left, top, left, top])
    crop = np.array([0, 0, wide, high])
    if config.crop:
        crop = _draw_crop(rng, config, boxes + corner, high, wide, aspect)
    mirror, flip = (rng.random(2) < 0.5).tolist()
    turns = int(rng.integers(4))
    if config.crop and config.rotate and turns % 2 and aspect != 1:
        # Upright crops become wide ones.
        crop = _draw_crop(rng, config, boxes + corner, high, wide, 1 / aspect)
    x1, y1, x2, y2 = (crop - corner).tolist()
    return Geometry(
        (x1, y1, x2, y2),
        mirror=config.mirror and mirror,
        flip=config.flip and flip,
        turns=turns if config.rotate else 0,
    )


def _draw_crop(
    rng: np.random.Generator,
    config: AugmentConfig,
    boxes: np.ndarray,
    height: int,
    width: int,
    aspect: float,
) -> np.ndarray:
    """Draw a crop x1, y1, x2, y2 in whole pixels; sometimes the whole canvas (SSD, Sec. 2.2)."""
    whole = np.array([0, 0, width, height])
    while True:
        kind = int(rng.integers(len(config.crop_min_ious) + 2))  # the whole, a minimum IoU, or no minimum
        if kind == 0:
            return whole
        sides = rng.uniform(config.crop_min_side, 1, (_TRIES, 2)) * whole[2:]
        corners = rng.random((_TRIES, 2)) * (whole[2:] - sides)
        crops = np.concatenate([corners, corners + sides], axis=1).astype(np.int64)  # (tries, 4)
        aspects = sides[:, 1] / sides[:, 0] / aspect  # 1: not stretched by the resize
        good = (config.crop_aspect[0] <= aspects) & (aspects <= config.crop_aspect[1])
        good &= (crops[:, 2:] > crops[:, :2]).all(1)
        if len(boxes):
            good &= centres_in(boxes, crops).any(1)
            if config.crop_enforce_iou and kind <= len(config.crop_min_ious):
                good &= _best_iou(boxes, crops) >= config.crop_min_ious[kind - 1]
        if good.any():
            return crops[good.argmax()]


def _best_iou(boxes: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """The highest IoU (c,) of each crop (c, 4) with any of the boxes (n, 4)."""
    crops = crops[:, None]  # (c, 1, 4)
    shared = np.minimum(boxes[:, 2:], crops[..., 2:]) - np.maximum(boxes[:, :2], crops[..., :2])
    shared = shared.clip(0).prod(2)  # (c, n)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (crops[..., 2:] - crops[..., :2]).prod(2)
    return (shared / (areas - shared)).max(1)
