"""What an engine really computes in: counted in the engine, or in the typed network it was built from."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

# Names that TensorRT's inspector gives types, in versions 8.6 to 11.
_TYPES = [
    (re.compile(r"int8", re.IGNORECASE), "int8"),
    (re.compile(r"bf16|bfloat16", re.IGNORECASE), "bf16"),
    (re.compile(r"fp8|float8", re.IGNORECASE), "fp8"),
    (re.compile(r"fp16|half|float16", re.IGNORECASE), "fp16"),
    (re.compile(r"fp32|float", re.IGNORECASE), "fp32"),
]
_HEAVY = re.compile(r"conv|gemm|matrixmultiply|matmul|fullyconnected", re.IGNORECASE)
# A layer that only moves data to or from such a layer.
_LIGHT = re.compile(r"reformat|reorder", re.IGNORECASE)


def of_network(trt: Any, network: Any) -> dict[str, int]:
    """Count the convolutions and matrix products of a strongly typed network by the type they compute in.

    Args:
        trt: The library.
        network: Parsed; its types are what the engine must keep to.
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


def of_engine(information: str) -> dict[str, int]:
    """The same from the JSON of an engine inspector; empty where it tells no types.

    Args:
        information: `EngineInspector.get_engine_information` of an engine built with detailed verbosity.
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
        for pattern, name in _TYPES:
            if pattern.search(text):
                counts[name] += 1
                break
    return dict(counts)


def delivered(asked: str, counts: dict[str, int]) -> str:
    """The precision an engine may call its own.

    Args:
        asked: What was asked for.
        counts: Convolutions and matrix products by type.

    Returns:
        `asked` where at least half of them compute in it, else the most frequent type. Layers that were kept
        in a higher precision on purpose are the fewer ones.
    """
    total = sum(counts.values())
    if not total or 2 * counts.get(asked, 0) >= total:
        return asked
    return max(counts, key=lambda name: counts[name])
