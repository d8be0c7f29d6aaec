"""The shape and type of every tensor of an ONNX graph at a given batch size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from yolact_runtime.errors import UsageError

# Shapes, sizes and indices have fewer values than this, weights and images more.
_SMALL = 1024


def at_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy of a graph for a batch size: all tensors described, large weights left out.

    ONNX's own inference over a whole graph stops at shapes that are computed by operators it does not
    follow, such as a division. Here each node is inferred with the values known before it, and what
    depends only on such values is computed.

    Args:
        model: The first dimension of its inputs is the batch.
        batch: Images in a call, 1 or more.

    Returns:
        The graph with shapes and types in `value_info`; weights of 1024 values or more are inputs after the
        real ones.

    Raises:
        UsageError: less than 1, or the graph is for another batch size.
    """
    if batch < 1:
        raise UsageError(f"batch is {batch}; it must be 1 or more")
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = result.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for size in (value.type.tensor_type.shape.dim[:1] for value in graph.input):
        if size and size[0].dim_value not in (0, batch):
            raise UsageError(
                f"batch is {batch}, but the graph is for {size[0].dim_value}; export it with --max-batch"
            )
        for one in size:
            one.dim_value = batch
    types: dict[str, Any] = {value.name: value.type for value in graph.input}
    values: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        if math.prod(tensor.dims) < _SMALL:
            graph.initializer.append(tensor)
            values[tensor.name] = numpy_helper.to_array(tensor)
        else:
            graph.input.append(helper.make_value_info(tensor.name, types[tensor.name]))
    versions = {opset.domain: opset.version for opset in model.opset_import}
    for node in graph.node:
        try:
            _infer(node, versions.get(node.domain, 1), types, values)
        except Exception:  # onnx does not know the operator, or cannot infer it: its outputs stay unknown
            continue
    leaving = {value.name for value in model.graph.output}
    for name in dict.fromkeys(name for node in graph.node for name in node.output if name in types):
        target = graph.output if name in leaving else graph.value_info
        target.append(helper.make_value_info(name, types[name]))
    return result


def _infer(node: onnx.NodeProto, version: int, types: dict[str, Any], values: dict[str, np.ndarray]) -> None:
    """Add the types and shapes of a node's outputs, and the values of small ones that can be computed."""
    inputs = [name for name in node.input if name]
    if node.op_type == "Shape" and not node.attribute and is_sized(types.get(inputs[0])):
        sizes = types[inputs[0]].tensor_type.shape.dim
        found: Any = [np.array([size.dim_value for size in sizes], np.int64)]
    elif all(name in values for name in inputs):
        found = ReferenceEvaluator(node).run(None, {name: values[name] for name in inputs})
    else:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        known = {name: types[name] for name in inputs if name in types}
        data = {name: numpy_helper.from_array(values[name], name) for name in inputs if name in values}
        types.update(shape_inference.infer_node_outputs(schema, node, known, data))
        return
    for name, array in zip(node.output, map(np.asarray, found), strict=True):
        types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        if array.size < _SMALL:
            values[name] = array


def is_sized(kind: Any) -> bool:
    """Whether a type has a shape without unknown dimensions."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return False
    return all(size.HasField("dim_value") for size in kind.tensor_type.shape.dim)
