"""The shape and type of every tensor of an ONNX graph at a given batch size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from yolact_runtime.errors import UsageError

# Shapes, sizes and indices are smaller than this, weights and images are not.
_SMALL = 1024


def at_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy of a graph for so many images: all tensors described, large weights left out.

    ONNX's own inference over a whole graph stops where a shape is computed by operators it does not
    follow, such as a division. Here each node is inferred with the values known before it, and what
    depends on nothing but such values is computed.

    Args:
        model: Its inputs have the batch as their first size.
        batch: Images in a call, 1 or more.

    Returns:
        The graph with shapes and types in `value_info`; weights of 1024 values or more are inputs after the
        real ones.

    Raises:
        UsageError: less than 1, or the graph is for another batch.
    """
    if batch < 1:
        raise UsageError(f"batch is {batch}; it must be 1 or more")
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = result.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for value in graph.input:
        if not value.type.tensor_type.shape.dim:
            continue
        size = value.type.tensor_type.shape.dim[0]
        if size.dim_value not in (0, batch):
            raise UsageError(
                f"batch is {batch}, but the graph is for {size.dim_value}; export it with --max-batch"
            )
        size.dim_value = batch
    known = {value.name: value.type for value in graph.input}
    values: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        known[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        if math.prod(tensor.dims) < _SMALL:
            graph.initializer.append(tensor)
            values[tensor.name] = numpy_helper.to_array(tensor)
        else:
            graph.input.append(helper.make_value_info(tensor.name, known[tensor.name]))
    versions = {opset.domain: opset.version for opset in model.opset_import}
    for node in graph.node:
        _visit(node, versions, known, values)
    outputs = {value.name for value in model.graph.output}
    graph.output.extend(helper.make_value_info(name, known[name]) for name in outputs if name in known)
    for node in graph.node:
        graph.value_info.extend(
            helper.make_value_info(name, known[name])
            for name in node.output
            if name in known and name not in outputs
        )
    return result


def _visit(
    node: onnx.NodeProto, versions: dict[str, int], known: dict[str, Any], values: dict[str, np.ndarray]
) -> None:
    """Add what is known of a node's outputs: their types and shapes, and small ones' values."""
    inputs = [name for name in node.input if name]
    try:
        if node.op_type == "Shape" and not node.attribute and _is_sized(known.get(inputs[0])):
            sizes = known[inputs[0]].tensor_type.shape.dim
            _learn(node, [np.array([size.dim_value for size in sizes], np.int64)], known, values)
            return
        if all(name in values for name in inputs):
            _learn(node, ReferenceEvaluator(node).run(None, {n: values[n] for n in inputs}), known, values)
            return
        schema = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain)
        types = {name: known[name] for name in inputs if name in known}
        data = {name: numpy_helper.from_array(values[name], name) for name in inputs if name in values}
        known.update(shape_inference.infer_node_outputs(schema, node, types, data))
    except Exception:  # an operator that onnx does not know, or cannot infer: its outputs stay unknown
        return


def _learn(node: onnx.NodeProto, found: Any, known: dict[str, Any], values: dict[str, np.ndarray]) -> None:
    for name, value in zip(node.output, found, strict=True):
        array = np.asarray(value)
        known[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        if array.size < _SMALL:
            values[name] = array


def _is_sized(kind: Any) -> bool:
    return kind is not None and all(size.HasField("dim_value") for size in kind.tensor_type.shape.dim)
