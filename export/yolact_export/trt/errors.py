"""TensorRT's errors in one line: node, operator, problem and remedy."""

from __future__ import annotations

import re
from typing import Any

import onnx

from yolact_export.onnx_graph import describe_node, iterate_nodes

# Remedies by a pattern of the message.
HINTS = [
    (r"FP32 GEMM is not supported", "TensorRT-RTX has none on capability 7.5; use --detect runtime"),
    (r"HW-specific datatypes", "that GPU lacks a type of the graph; use --precision fp16 or fp32"),
    (r"no optimization profile", "the batch is dynamic; export with --max-batch"),
    (r"[Nn]on-zero zero point|zeroPoint", "quantise symmetrically to int8"),
    (r"K exceeds the maximum", "lower detect.nms_top_k"),
    (r"Plugin not found|plugin creator", "this library has no such operator; export with --detect native"),
    (r"Failed to parse the ONNX model", "the file is damaged; export it again"),
    (r"[Oo]ut ?[Oo]f ?[Mm]emory|insufficient memory", "free memory on the GPU, or lower --max-batch"),
    (
        r"no runners that implement|Could not find any implementation",
        "this GPU and library cannot run it; raise --workspace, or use --detect runtime",
    ),
    (
        r"cudaError 35|CUDA driver|CUDA initialization failure|no CUDA-capable device",
        "no usable GPU or driver here; build ahead of time with --backend rtx",
    ),
    (r"cudaError 209|no kernel image", "this library has no code for that GPU"),
]


def parser_error(parser: Any, model: onnx.ModelProto | None) -> str:
    """The first error of an ONNX parser in one line.

    Args:
        parser: TensorRT's parser after a failure.
        model: The graph, for the names of nodes that the parser (TensorRT 8.6) only numbers.
    """
    if not parser.num_errors:
        return "the parser gave no reason"
    error = parser.get_error(0)
    text = _first_line(error.desc())
    where = _node_of(error, model)
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    return f"{where}{text}{more}{hint(text)}"


def build_error(messages: list[str], model: onnx.ModelProto | None) -> str:
    """The first error that a build logged, in one line.

    Args:
        messages: All errors of the build.
        model: The graph, to find the node that the message names.
    """
    if not messages:
        return "the builder gave no reason"
    text = _first_line(messages[0])
    where = ""
    if model is not None:
        named = {node.name: node for node in iterate_nodes(model.graph) if node.name}
        # The longest name that occurs as a separate word: some names contain others.
        words = set(re.findall(r"[\w/.:]+", text))
        found = sorted((name for name in named if name in words or f"{name}:" in words), key=len)
        if found:
            where = f"{describe_node(named[found[-1]])}: "
    return f"{where}{text}{hint(text)}"


def hint(text: str) -> str:
    """The remedy for an error, with a separator before it; "" if none is known."""
    return next((f"; {advice}" for pattern, advice in HINTS if re.search(pattern, text)), "")


def _node_of(error: Any, model: onnx.ModelProto | None) -> str:
    if hasattr(error, "node_operator") and error.node_operator():
        return f"node {error.node_name() or error.node()} ({error.node_operator()}): "
    index = error.node()
    if model is not None and 0 <= index < len(model.graph.node):
        return f"{describe_node(model.graph.node[index])}: "
    return ""


def _first_line(text: str) -> str:
    line = next((part.strip() for part in text.splitlines() if part.strip()), "no reason given")
    # In "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (...)" only the parentheses matter.
    match = re.search(r"Error Code \d+: [^(]*\((.*?)(?:\. In \w+ at .*)?\)?$", line)
    line = match.group(1) if match else line
    return line if len(line) <= 300 else line[:297] + "..."
