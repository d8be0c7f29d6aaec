"""Looking through ONNX graphs; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

# What the network returns, in the order of a graph that leaves detection to the runtime.
HEADS = ("loc", "logits", "coefficients", "prototypes")
# TensorRT's limit, in every version from 8.6 to 11.
MAX_TOPK = 3840


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def describe_node(node: onnx.NodeProto) -> str:
    """A node as error messages call it: its name, or else its first output, and its operator."""
    return f"node {node.name or node.output[0]} ({node.op_type})"
