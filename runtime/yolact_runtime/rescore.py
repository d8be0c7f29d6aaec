"""Fast mask re-scoring of YOLACT++ in NumPy, for files with raw heads."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from yolact_runtime.errors import YolactError


@dataclass(frozen=True)
class MaskIouNet:
    """Predicts the IoU of a mask with the ground truth from the mask itself.

    Attributes:
        layers: (weight, bias) of each convolution: 3x3 with stride 2, and finally 1x1 to the classes.
    """

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def from_text(cls, text: str, source: object) -> MaskIouNet:
        """Decode the metadata field `mask_iou_net`: base64 of an .npz with weight0, bias0, weight1, ...

        Raises:
            YolactError: `text` is something else.
        """
        try:
            with np.load(io.BytesIO(base64.b64decode(text, validate=True))) as arrays:
                depth = len(arrays.files) // 2
                layers = tuple((arrays[f"weight{i}"], arrays[f"bias{i}"]) for i in range(depth))
            if not layers or any(weight.ndim != 4 for weight, _ in layers):
                raise ValueError
        except (ValueError, KeyError, OSError, EOFError):
            raise YolactError(
                f"{source}: metadata field yolact.mask_iou_net cannot be read; export the file again"
            ) from None
        return cls(layers)

    def __call__(self, masks: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Predicted IoU of each mask.

        Args:
            masks: (n, Hp, Wp) float32 in 0..1, cropped, at prototype resolution.
            classes: (n,) integer.

        Returns:
            (n,) float32, 0 or more.
        """
        if not len(masks):
            return np.zeros(0, np.float32)
        x = masks[..., None]  # (n, H, W, 1)
        for weight, bias in self.layers:
            stride = 2 if weight.shape[2] > 1 else 1
            x = np.maximum(_convolve(x, weight, stride) + bias, 0)
        return x.max(axis=(1, 2))[np.arange(len(x)), classes].astype(np.float32)


def _convolve(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """(n, H, W, C) with (O, C, k, k), no padding: (n, H', W', O)."""
    side = weight.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
    columns = windows[:, ::stride, ::stride]  # (n, H', W', C, k, k)
    n, height, width = columns.shape[:3]
    flat = columns.reshape(n * height * width, -1) @ weight.reshape(len(weight), -1).T
    return flat.reshape(n, height, width, len(weight))
