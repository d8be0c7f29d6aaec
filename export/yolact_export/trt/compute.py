"""Counts the types that an engine computes in, in the engine or in the typed network it is built from."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

# Names of types in the output of TensorRT's inspector, versions 8.6 to 11.
_TYPES = [
    (re.compile(r"int8", re.IGNORECASE), "int8"),
    (re.compile(r"bf16|bfloat16", re.IGNORECASE), "bf16"),
    (re.compile(r"fp8|float8", re.IGNORECASE), "fp8"),
    (re.compile(r"fp16|half|float16", re.IGNORECASE), "fp16"),
    (re.compile(r"fp32|float", re.IGNORECASE), "fp32"),
]
_HEAVY = re.compile(r"conv|gemm|matrixmultiply|matmul|fullyconnected", re.IGNORECASE)
# Layers that only move data to or from those.
_LIGHT = re.compile(r"reformat|reorder", re.IGNORECASE)
# Required share of an engine's layers in the requested precision.
SHARE = 0.95


def count_network(trt: Any, network: Any) -> dict[str, int]:
    """Count the convolutions and matrix products of a network by the type they compute in.

    Args:
        trt: The library.
        network: The parsed network, whose types bind the engine.

    Returns:
        Number of layers by type, such as {"fp16": 50, "fp32": 2}.
    """
    kinds = trt.LayerType
    heavy = {
        getattr(kinds, name)
        for name in ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "FULLY_CONNECTED")
        if hasattr(kinds, name)
    }
    names = {
        getattr(trt.DataType, upper): lower
        for upper, lower in (("FLOAT", "fp32"), ("HALF", "fp16"), ("BF16", "bf16"), ("FP8", "fp8"))
        if hasattr(trt.DataType, upper)
    }
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    dequantised = {
        layer.get_output(0).name for layer in layers if layer.type == getattr(kinds, "DEQUANTIZE", None)
    }
    counts: Counter[str] = Counter()
    for layer in layers:
        if layer.type in heavy:
            given = layer.get_input(0)
            counts["int8" if given.name in dequantised else names.get(given.dtype, str(given.dtype))] += 1
    return dict(counts)


def count_engine(information: str) -> dict[str, int]:
    """The same, counted in the JSON of an engine inspector.

    Args:
        information: `EngineInspector.get_engine_information` of an engine built with detailed verbosity.

    Returns:
        As `count_network`; empty if the inspector does not list the type of every such layer.
    """
    counts: Counter[str] = Counter()
    for layer in json.loads(information).get("Layers", []):
        if not isinstance(layer, dict):  # names only
            return {}
        kind = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}"
        if not _HEAVY.search(kind) or _LIGHT.search(kind):
            continue
        inputs = layer.get("Inputs") or [{}]
        text = str(inputs[0].get("Format/Datatype") or inputs[0].get("Datatype") or "")
        name = next((name for pattern, name in _TYPES if pattern.search(text)), None)
        if name is None:  # such as "N/A due to dynamic shapes": the others do not stand for it
            return {}
        counts[name] += 1
    return dict(counts)


def delivered(requested: str, counts: dict[str, int], network: dict[str, int]) -> tuple[str, bool]:
    """The precision that an engine really has.

    The request is met if `SHARE` of the engine's layers have that type, not counting as many layers as the
    network keeps in other types. The number of layers differs, as an engine may fuse several into one.

    Args:
        requested: The requested precision.
        counts: Convolutions and matrix products of the engine by type.
        network: The same of the network that it was built from.

    Returns:
        The precision, and whether the request is met. If not, the precision is the most frequent type, or
        "fp32" if nothing was counted.
    """
    total = sum(counts.values())
    if not total:
        return "fp32", requested == "fp32"
    due = total - (sum(network.values()) - network.get(requested, 0))
    if counts.get(requested, 0) >= max(1, SHARE * due):
        return requested, True
    return max(counts, key=lambda name: counts[name]), False
