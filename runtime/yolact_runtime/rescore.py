"""Fast mask re-scoring of YOLACT++ in NumPy, for files with raw heads."""

from __future__ import annotations

import base64
import io
import math
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.untrusted import beyond, limit

# The beginning of a .npy file with float32, up to the line end of its header, as NumPy writes it.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..{'descr': '<f4', 'fortran_order': False, 'shape': \(([0-9, ]{0,200})\), } *\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class MaskIouNet:
    """Predicts the IoU of a mask with the ground truth from the mask itself.

    Attributes:
        layers: (weight, bias) of each convolution: 3x3 with stride 2, and finally 1x1 to the classes.
    """

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def from_text(cls, text: str, source: object, classes: int) -> MaskIouNet:
        """Decode the metadata field `mask_iou_net`: base64 of an .npz with weight0, bias0, weight1, ...

        Args:
            text: The field.
            source: The file, for error messages.
            classes: Number of classes that the last layer has to return.

        Raises:
            YolactError: `text` is something else, or has more bytes than allowed once it is unpacked.
        """
        try:
            arrays = _unpack(base64.b64decode(text, validate=True))
            depth = len(arrays) // 2
            layers = tuple((arrays[f"weight{i}"], arrays[f"bias{i}"]) for i in range(depth))
            channels = 1
            for weight, bias in layers:
                if (
                    weight.shape[1:] not in ((channels, 3, 3), (channels, 1, 1))
                    or bias.shape != weight.shape[:1]
                ):
                    raise ValueError(f"layers of shape {weight.shape} and {bias.shape} do not fit")
                channels = len(weight)
            if channels != classes or not layers:
                raise ValueError(f"it has {channels} outputs for {classes} classes")
        # From zipfile: besides damage, what it cannot decode or has no password for.
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error,
                NotImplementedError, RuntimeError, MemoryError, struct.error) as error:  # fmt: skip
            raise YolactError(
                f"{source}: metadata field yolact.mask_iou_net cannot be read ({first_line(error)}); export"
                " the file again"
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
            if min(x.shape[1:3]) < weight.shape[2]:
                raise YolactError(
                    f"masks of {masks.shape[1]} x {masks.shape[2]} are too small for the network that"
                    " re-scores them; export the file again"
                )
            stride = 2 if weight.shape[2] > 1 else 1
            x = np.maximum(_convolve(x, weight, stride) + bias, 0)
        return x.max(axis=(1, 2))[np.arange(len(x)), classes].astype(np.float32)


def _unpack(data: bytes) -> dict[str, np.ndarray]:
    """The float32 arrays of an .npz, by name, whose sizes are checked before anything is unpacked.

    Raises:
        ValueError: it is too large, or an entry is no such array; zipfile has errors of its own.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > limit("unpacked_bytes"):
            raise ValueError(f"unpacked, it has more bytes than {beyond('unpacked_bytes')}")
        arrays = {}
        for entry in archive.infolist():
            content = archive.read(entry)
            header = _HEADER.match(content)
            if header is None:
                raise ValueError(f"{entry.filename[:40]!r} is not an array of float32")
            shape = tuple(int(side) for side in header[1].split(b",") if side.strip())
            # NumPy's reader would allocate what the header says.
            if len(content) - header.end() != 4 * math.prod(shape):
                raise ValueError(f"{entry.filename[:40]!r} has more or fewer numbers than its shape")
            array = np.frombuffer(content, "<f4", offset=header.end()).reshape(shape)
            arrays[entry.filename.removesuffix(".npy")] = array
    return arrays


def _convolve(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """(n, H, W, C) with (O, C, k, k), no padding: (n, H', W', O)."""
    side = weight.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
    columns = windows[:, ::stride, ::stride]  # (n, H', W', C, k, k)
    n, height, width = columns.shape[:3]
    flat = columns.reshape(n * height * width, -1) @ weight.reshape(len(weight), -1).T
    return flat.reshape(n, height, width, len(weight))
