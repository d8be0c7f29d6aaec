"""The precision of an engine, from the types that its layers compute in."""

from __future__ import annotations

import json

import pytest

from yolact_export.trt.compute import count_engine, delivered


@pytest.mark.parametrize(
    ("requested", "counts", "network", "expected"),
    [
        ("fp16", {"fp16": 86}, {"fp16": 86}, ("fp16", True)),
        ("fp32", {"fp32": 86}, {"fp32": 86}, ("fp32", True)),
        # 95 of 100 will do, 94 will not, though most are as asked.
        ("fp16", {"fp16": 95, "fp32": 5}, {"fp16": 100}, ("fp16", True)),
        ("fp16", {"fp16": 94, "fp32": 6}, {"fp16": 100}, ("fp16", False)),
        # What the network keeps in float32 does not count, be it more than half.
        ("int8", {"int8": 30, "fp32": 56}, {"int8": 30, "fp32": 56}, ("int8", True)),
        ("int8", {"int8": 27, "fp32": 59}, {"int8": 30, "fp32": 56}, ("fp32", False)),
        # The heads' fifteen convolutions may become five.
        ("int8", {"int8": 60, "fp32": 16}, {"int8": 70, "fp32": 16}, ("int8", True)),
        ("fp16", {"fp32": 86}, {"fp16": 86}, ("fp32", False)),
        # Layers in float32 that the engine does not list do not stand for any in half precision.
        ("fp16", {"fp32": 4}, {"fp16": 4, "fp32": 6}, ("fp32", False)),
        ("fp16", {}, {}, ("fp32", False)),
        ("int8", {}, {"int8": 5}, ("fp32", False)),
        ("fp32", {}, {}, ("fp32", True)),
    ],
)
def test_delivered(
    requested: str, counts: dict[str, int], network: dict[str, int], expected: tuple[str, bool]
) -> None:
    assert delivered(requested, counts, network) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Half", "Half", "Float"], {"fp16": 2, "fp32": 1}),
        (["Half", "N/A due to dynamic shapes"], {}),
        (["Half", ""], {}),
    ],
)
def test_a_layer_of_unknown_type_is_not_left_out(texts: list[str], expected: dict[str, int]) -> None:
    layers = [{"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": text}]} for text in texts]
    layers.append({"LayerType": "NoOp", "Inputs": [{"Format/Datatype": "?"}]})
    assert count_engine(json.dumps({"Layers": layers})) == expected
