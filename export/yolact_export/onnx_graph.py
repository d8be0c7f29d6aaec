"""Reading ONNX files, and the rules that every graph has to keep; needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from yolact_runtime.engines.trial import SHAPES, try_engine
from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.metadata import Metadata

# Outputs of the network, in the order of a graph that leaves detection to the runtime.
HEADS = ("loc", "logits", "coefficients", "prototypes")
# TensorRT's limit, in every version from 8.6 to 11.
MAX_TOPK = 3840
# No side of a tensor is larger.
_LARGEST = 1 << 40
# Their output shapes depend on data: neither CUDA graphs nor TensorRT-RTX accept that.
DATA_DEPENDENT = {"NonMaxSuppression", "NonZero", "Unique", "Loop", "Scan"}


def read_graph(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file and infer the types and shapes of its tensors.

    Raises:
        YolactError: the file does not exist, is cut off, is not valid ONNX, or does not pass its trial.
    """
    try_engine(Path(path), SHAPES)
    try:
        model = onnx.load(path)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        # It needs the shapes of outputs, which operators that onnx does not know leave open.
        if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
            onnx.checker.check_model(model)
        _check_types(model.graph)
        return model
    except OSError as error:
        raise YolactError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # protobuf and onnx have their own exception types
        raise YolactError(
            f"{path} is damaged or not an ONNX file ({first_line(error)}); copy or export it again"
        ) from error


def _check_types(graph: onnx.GraphProto) -> None:
    """Raise a ValueError if a tensor's type or size cannot be."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.elem_type not in onnx.TensorProto.DataType.values():
            raise ValueError(f"{value.name} is of the type number {tensor.elem_type}")
        for dim in tensor.shape.dim:
            if not 0 <= dim.dim_value < _LARGEST:
                raise ValueError(f"{value.name} has a side of {dim.dim_value}")


def graph_metadata(model: onnx.ModelProto, source: str | Path) -> Metadata:
    """The metadata that yolact-export wrote into a graph.

    Args:
        model: The graph.
        source: Its file, for error messages.

    Raises:
        YolactError: a field is missing or wrong.
    """
    return Metadata.from_props({prop.key: prop.value for prop in model.metadata_props}, source)


def iterate_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph, including those of nested graphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from iterate_nodes(attribute.g)


def describe_node(node: onnx.NodeProto) -> str:
    """A node in an error message: its name, or else its first output, and its operator."""
    return f"node {node.name or node.output[0]} ({node.op_type})"


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor whose type is known: inputs, outputs, inferred values, initializers."""
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def small_constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Values of Constant nodes and of initializers with at most 65,536 elements, by name."""
    found = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if math.prod(tensor.dims) <= 1 << 16
    }
    for node in iterate_nodes(graph):
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
    return found


def operator_problem(
    node: onnx.NodeProto, constants: Mapping[str, np.ndarray], refused: Collection[str] = DATA_DEPENDENT
) -> str:
    """Why some backend refuses a node, or "" if every backend accepts it.

    Args:
        node: Of a graph.
        constants: The graph's `small_constants`.
        refused: Operators to refuse because their output shapes depend on data.
    """
    where = describe_node(node)
    if node.domain not in ("", "ai.onnx"):
        return (
            f"{where} is of the domain {node.domain}; only standard ONNX operators are allowed: export with"
            " --detect native or --detect runtime"
        )
    if node.op_type in refused:
        return f"{where} makes shapes depend on data; export with yolact-export, which writes none"
    if node.op_type == "TopK":
        k = constants.get(node.input[1])
        if k is None:
            return f"{where}: k is not a constant; export with a fixed number of candidates"
        if k.item() > MAX_TOPK:
            return (
                f"{where}: k is {k.item()}, at most {MAX_TOPK} is allowed; lower detect.nms_top_k or"
                " detect.max_detections"
            )
    return ""
