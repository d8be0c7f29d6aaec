"""The network of the doctor: small, with weights from a seeded generator, and what it finds in three images.

The ONNX files in `data/` have zeros for their weights, which compress to a few kB. The weights are computed
here and written over the zeros, so that neither PyTorch nor onnx is needed to get a whole file.
`tests/doctor_files.py` writes what is in `data/`.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_runtime.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

    from yolact.config import Config
    from yolact.model import Yolact

# Graphs that return detections, and those that return raw heads.
KINDS = ("native", "runtime")
IMAGES = 3
MAX_BATCH = 8
# Exports fold the batch norms, whose variance is 1, into the convolutions before them.
FOLDED = 1 / math.sqrt(1 + 1e-5)
_NORMS = "stem.1.weight", "bn1.weight", "bn2.weight"
# Chosen so that each image has some tens of detections whose scores and masks differ.
_BACKGROUND, _MASKS = 9.0, 0.6
_GAINS = {"conf_layer.weight": 0.3, "mask_layer.weight": 0.15, "bbox_layer.weight": 0.15}


def weights(name: str, shape: Sequence[int]) -> np.ndarray:
    """The float32 values of a weight of the network, the same on every machine.

    Args:
        name: In the state dict.
        shape: Its shape, as the network has it.
    """
    import numpy as np

    if len(shape) != 4:  # biases and batch norms
        values = np.full(shape, 1.0 if name.endswith((".running_var", *_NORMS)) else 0.0)
        if name.endswith("conf_layer.bias"):
            values.reshape(3, -1)[:, 0] = _BACKGROUND
        if name.endswith("mask_layer.bias"):
            values[:] = _MASKS
        return values.astype(np.float32)
    # This generator's stream is the same in all versions of NumPy, and uniform values need no libm.
    random = np.random.RandomState(zlib.crc32(name.encode()))
    gain = next((gain for end, gain in _GAINS.items() if name.endswith(end)), 1.0)
    bound = gain * math.sqrt(6 / math.prod(shape[1:]))
    return ((2 * random.random_sample(tuple(shape)) - 1) * bound).astype(np.float32)


def write_onnx_file(path: Path, kind: str = "native") -> Path:
    """Write the network as an ONNX file that returns what `kind` of `KINDS` says."""
    import numpy as np

    folder = resources.files("yolact_bench.doctor").joinpath("data")
    content = bytearray(gzip.decompress(folder.joinpath(f"{kind}.onnx.gz").read_bytes()))
    for offset, name, shape, folded in json.loads(folder.joinpath(f"{kind}.json").read_text("utf-8")):
        values = weights(name, shape) * np.float32(FOLDED if folded else 1)
        data = values.astype("<f4").tobytes()
        content[offset : offset + len(data)] = data
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_checkpoint(path: Path) -> Path:
    """Write the network as a checkpoint; needs PyTorch."""
    from yolact.train.checkpoint import save_checkpoint

    save_checkpoint(path, build_model(), 0, 0, None)
    return path


def build_model() -> Yolact:
    """The network in PyTorch, in evaluation mode."""
    import torch

    from yolact.model import Yolact

    model = Yolact(tiny_config())
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = torch.from_numpy(weights(name, tensor.shape))
    model.load_state_dict(state)
    return model.eval()


def tiny_config() -> Config:
    """The configuration of the network: that of the demo, with fewer features."""
    from dataclasses import replace

    from yolact.registry import get_config

    config = get_config("yolact_tiny")
    model = replace(config.model, fpn_features=16, num_prototypes=8)
    return replace(config, model=model, detect=replace(config.detect, nms_top_k=64, max_detections=32))


def sample_images() -> list[np.ndarray]:
    """Images (H, W, 3) uint8 of several sizes, the same on every machine: noise of several scales at once.

    No region is flat: neighbouring priors would tie there, and rounding would choose between them.
    """
    import numpy as np

    random = np.random.RandomState(7)
    images = []
    for height, width in ((128, 128), (120, 200), (240, 160))[:IMAGES]:
        image = np.zeros((height, width, 3))
        for block in (1, 4, 16, 64):
            cells = 2 * random.random_sample((-(-height // block), -(-width // block), 3)) - 1
            image += cells.repeat(block, 0).repeat(block, 1)[:height, :width]
        images.append(np.clip(128 + 48 * image, 0, 255).astype(np.uint8))
    return images


def expected_results() -> list[dict[str, Any]]:
    """What PyTorch found in `sample_images`: COCO results with masks as RLE; `image_id` counts from 0."""
    file = resources.files("yolact_bench.doctor").joinpath("data/expected.json")
    found: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))
    return found


def sample_heads(
    priors: int = 1023, classes: int = 3, depth: int = 8, side: int = 32
) -> dict[str, np.ndarray]:
    """Raw heads of one image by name, with some tens of candidates; the same on every machine.

    Returns:
        `loc` (1, P, 4), `logits` (1, P, C+1), `coefficients` (1, P, M) and `prototypes` (1, side, side, M).
    """
    import numpy as np

    random = np.random.RandomState(11)

    def noise(*shape: int, low: float = -1.0) -> np.ndarray:
        return low + (1 - low) * random.random_sample(shape)

    logits = 8 * noise(1, priors, classes + 1) ** 3
    logits[..., 0] = 6
    # Smooth prototypes, as a network's are.
    coarse = 3 * noise(1, side // 8, side // 8, depth, low=0)
    prototypes = coarse.repeat(8, 1).repeat(8, 2)
    for axis in (1, 2):
        prototypes = np.mean([np.roll(prototypes, shift, axis) for shift in range(-4, 5)], axis=0)
    heads = {
        "loc": noise(1, priors, 4),
        "logits": logits,
        "coefficients": np.tanh(2 * noise(1, priors, depth) + 0.5),
        "prototypes": prototypes,
    }
    return {name: head.astype(np.float32) for name, head in heads.items()}
