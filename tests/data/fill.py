"""Deterministic weights and test image behind the golden tensors.

A weight depends only on its state-dict key and shape, so that any
implementation that opens the published checkpoints can rebuild the weights the
goldens were generated with, without shipping 100 MB of them. It is a copy of the
`fill.py` of the whole reference set; only where it reads the keys and shapes differs.
"""

from __future__ import annotations

import gzip
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

TABLES = Path(__file__).resolve().parent / "state_dicts.json.gz"

# Added to the background logit's bias so that a realistic share of priors passes 0.05.
BACKGROUND_BIAS = {
    "yolact_base": 19.0,
    "yolact_im400": 18.0,
    "yolact_im700": 19.0,
    "yolact_darknet53": 12.0,
    "yolact_resnet50": 14.0,
    "yolact_resnet50_pascal": 14.0,
    "yolact_plus_base": 17.5,
    "yolact_plus_resnet50": 13.5,
}


@cache
def read_tables() -> dict[str, Any]:
    """What the original says of each configuration (such as 'yolact_base'): state dict, settings, sizes."""
    tables: dict[str, Any] = json.loads(gzip.decompress(TABLES.read_bytes()))
    return tables


def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return rng.standard_normal(size=shape)


def fill_tensor(
    key: str, shape: tuple[int, ...], dtype: str, num_classes: int, background: float
) -> np.ndarray:
    """Value of the state-dict entry `key`: float32 (or int64 zeros for counters)."""
    if "int" in dtype:
        return np.zeros(shape, np.int64)
    z = _normal(key, tuple(shape))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        value = 1 + 0.1 * np.abs(z)
    elif leaf == "running_mean":
        value = 0.1 * z
    elif leaf == "bias":
        value = 0.05 * z
    elif len(shape) == 1:
        value = 1 + 0.1 * z
    else:
        value = (z - z.mean(axis=(1, 2, 3), keepdims=True)) * np.sqrt(3.0 / np.prod(shape[1:]))
        if key.startswith("backbone.") and key.endswith((".conv3.weight", ".conv2.0.weight")):
            value = value * 0.25
        if ".conv_offset_mask." in key:
            value = value * 0.25
        if key in ("prediction_layers.0.bbox_layer.weight", "prediction_layers.0.mask_layer.weight"):
            value = value * 0.25
        if key == "prediction_layers.0.conf_layer.weight":
            value = value * 0.75
    if key == "prediction_layers.0.conf_layer.bias":
        value = value.reshape(-1, num_classes)
        value[:, 0] += background
        value = value.reshape(-1)
    return value.astype(np.float32)


def state_dict(config: str) -> dict[str, np.ndarray]:
    """All entries of a published-format checkpoint of `config` (such as 'yolact_base'), in order."""
    table = read_tables()[config]
    classes = table["cfg"]["num_classes"]
    background = BACKGROUND_BIAS[config]
    return {
        key: fill_tensor(key, tuple(shape), dtype, classes, background)
        for key, shape, dtype in table["state_dict"]
    }


def synthetic_image() -> np.ndarray:
    """The 'synth' input: uint8 BGR, 384 x 480, blocks of 24 x 24."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(b"yolact-synth-image")))
    blocks = rng.integers(0, 256, size=(16, 20, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((24, 24, 1), np.uint8))
