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
# Of what the network has in a precision, what the engine must have in it.
SHARE = 0.95


def of_network(trt: Any, network: Any) -> dict[str, int]:
    """Count the convolutions and matrix products of a network by the type they compute in.

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


def delivered(asked: str, counts: dict[str, int], network: dict[str, int]) -> tuple[str, bool]:
    """The precision an engine may call its own, and whether that is what was asked for.

    Args:
        asked: What was asked for.
        counts: Convolutions and matrix products by type, of the engine.
        network: The same of the network it was built from. Some may be in a higher precision on purpose.

    Returns:
        The type and whether `asked` is met. That takes `SHARE` of the engine's layers, less those that the
        network has in another type: an engine may do several layers of the network in one, so their numbers
        do not compare. Where it is not met, the type is the most frequent one; where nothing was counted,
        "fp32".
    """
    total = sum(counts.values())
    if not total:
        return "fp32", asked == "fp32"
    due = total - (sum(network.values()) - network.get(asked, 0))
    if counts.get(asked, 0) >= max(1, SHARE * due):
        return asked, True
    return max(counts, key=lambda name: counts[name]), False
