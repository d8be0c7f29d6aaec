"""Sorts the nodes of a graph into layer groups, and finds the heads of the network."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from yolact_export.onnx_graph import HEADS, element_types
from yolact_runtime.errors import UsageError, YolactError

# Operators with nearly all of the arithmetic.
COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# What `fp16` appends to the name of a half tensor that is cast back.
SINGLE = "_float32"
PREPROCESSING = "preprocessing"
DETECTION = "detection"
HEAD_OUTPUTS = "head.outputs"
_HEAD = {
    "upfeature": "head.features",
    "bbox_layer": "head.boxes",
    "conf_layer": "head.classes",
    "mask_layer": "head.coefficients",
}


def scope(node: onnx.NodeProto) -> str:
    """Module path of a node, such as /model/fpn/lat_layers.0/Conv, from its name or its output's name."""
    return node.name if node.name.startswith("/") or not node.output else node.output[0]


def layer_group(node: onnx.NodeProto) -> str:
    """The layer group of a node, such as `backbone.layers.1` or `head.classes`.

    Nodes outside the network are `preprocessing` (resized image to network input) or `detection`.
    """
    path = scope(node).strip("/").split("/")
    top, inner = path[0], path[2] if len(path) > 2 else ""
    if top == "normalise":
        return PREPROCESSING
    if top == "maskiou_net":
        return "mask_iou"
    if top != "model" or len(path) < 2:
        return DETECTION
    part = path[1]
    if part == "backbone":
        return f"backbone.{inner}" if inner.startswith("layers.") else "backbone.stem"
    if part == "fpn":
        return "fpn"
    if part == "proto_net":
        return "protonet.output" if inner in ("proto_net.10", "proto_net.11") else "protonet"
    if part.startswith("prediction_layers"):
        return next((group for layer, group in _HEAD.items() if inner.startswith(layer)), HEAD_OUTPUTS)
    return HEAD_OUTPUTS


def compute_groups(model: onnx.ModelProto) -> list[str]:
    """The layer groups with convolutions or matrix products, in the order of the graph."""
    found = [layer_group(node) for node in model.graph.node if node.op_type in COMPUTE]
    return [group for group in dict.fromkeys(found) if group not in (PREPROCESSING, DETECTION)]


def check_groups(model: onnx.ModelProto, names: Sequence[str]) -> frozenset[str]:
    """Check that each name is a layer group of this network.

    Returns:
        The names as a set.

    Raises:
        UsageError: a name is unknown; lists the known ones.
    """
    known = compute_groups(model)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(
            f"--keep-float {unknown[0]}: unknown layer group; known: auto, none, {', '.join(known)}"
        )
    return frozenset(names)


def network_outputs(model: onnx.ModelProto) -> dict[str, str]:
    """The tensors that the network passes to detection, by head name; also of a graph in reduced precision.

    Raises:
        YolactError: yolact-export did not write this graph.
    """
    leaving = group_outputs(model, whole=True)
    tensors = [name for name, group in leaving.items() if group in (HEAD_OUTPUTS, "protonet.output")]
    if len(tensors) != len(HEADS):
        raise YolactError(
            f"the network in this graph has {len(tensors)} outputs, not {len(HEADS)}; export it again"
        )
    # A cast to float32 comes where the head is first read, so the order is that of what is cast.
    order = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    tensors.sort(key=lambda name: order.get(name.removesuffix(SINGLE), order[name]))
    return dict(zip(HEADS, tensors, strict=True))


def group_outputs(model: onnx.ModelProto, whole: bool = False) -> dict[str, str]:
    """Float tensors that leave a layer group, to another group or as outputs of the graph.

    Args:
        model: With inferred types.
        whole: Treat all groups before detection as one, whose inner tensors are left out.

    Returns:
        Group by tensor name.
    """

    def region(group: str) -> str:
        inner = whole and group not in (PREPROCESSING, DETECTION, "mask_iou")
        return "network" if inner else group

    floats = float_tensors(model)
    leaving = {value.name for value in model.graph.output}
    producer = {
        name: layer_group(node) for node in model.graph.node for name in node.output if name in floats
    }
    for node in model.graph.node:
        if node.op_type != "Shape":
            here, read = region(layer_group(node)), producer.keys() & set(node.input)
            leaving |= {name for name in read if region(producer[name]) != here}
    return {
        name: group
        for name, group in producer.items()
        if name in leaving and group not in (PREPROCESSING, DETECTION)
    }


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of all float32 tensors of the graph."""
    kinds = element_types(model)
    return {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT}
