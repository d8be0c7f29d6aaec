"""Finds what TensorRT would refuse in a graph before its parser reads it.

The parser stops at the first error, some of its errors name no node, and some graphs make TensorRT-RTX abort
the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from yolact_export.onnx_graph import (
    describe_node,
    element_types,
    iterate_nodes,
    operator_problem,
    small_constants,
)
from yolact_export.trt.target import RTX, Target
from yolact_runtime.errors import YolactError

# Quantised operators of ONNX. TensorRT reads quantisation from QuantizeLinear and DequantizeLinear around
# ordinary operators instead.
QUANTISED = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}
MATRIX_PRODUCTS = {"MatMul", "Gemm", "Einsum"}


def check_graph(model: onnx.ModelProto, target: Target, batch: tuple[int, int]) -> None:
    """Check that `target` accepts the graph.

    Args:
        model: At most 2 GB (protobuf's limit), as everything that yolact-export writes.
        target: Library and compute capabilities.
        batch: Fewest and most images in one call, from the metadata.

    Raises:
        YolactError: names the first offending node, its operator and the remedy, and counts the others.
    """
    problems = list(_problems(model, target, batch))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise YolactError(f"{target.title} cannot build this graph: {problems[0]}{more}")


def _problems(model: onnx.ModelProto, target: Target, batch: tuple[int, int]) -> Iterator[str]:
    """One line for each input and node that `target` refuses."""
    yield from _input_problems(model.graph, batch)
    constants = small_constants(model.graph)
    turing = target.library == RTX and "7.5" in target.capabilities
    types = _inferred_types(model) if turing else {}
    for node in iterate_nodes(model.graph):
        if problem := operator_problem(node, constants):
            yield problem
            continue
        where = describe_node(node)
        if node.op_type in QUANTISED:
            yield (
                f"{where} is not supported; quantise with QuantizeLinear and DequantizeLinear"
                " (--precision int8)"
            )
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _quantisation_problems(node, constants)
        used = {types.get(name) for name in (*node.input, *node.output)}
        if turing and TensorProto.BFLOAT16 in used:
            yield f"{where} uses bfloat16, which capability 7.5 lacks; use --precision fp16"
        elif turing and node.op_type in MATRIX_PRODUCTS and TensorProto.FLOAT in used:
            yield (
                f"{where} multiplies float32 matrices, which TensorRT-RTX does not support on capability 7.5;"
                " export with --detect runtime, or build for 8.0 and later"
            )


def _input_problems(graph: onnx.GraphProto, batch: tuple[int, int]) -> Iterator[str]:
    """One line for each input with a dynamic size other than the batch, or a batch unlike the metadata's."""
    initial = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in initial:
            continue
        dims = value.type.tensor_type.shape.dim
        dynamic = [axis for axis, dim in enumerate(dims) if not dim.HasField("dim_value")]
        if not dims or any(axis > 0 for axis in dynamic):
            yield f"input {value.name} has dynamic sizes besides the batch; export with a fixed input size"
        elif dynamic and batch[0] == batch[1]:
            yield (
                f"input {value.name} has a dynamic batch, but its metadata allows only {batch[0]}; export"
                " with --max-batch"
            )
        elif not dynamic and not dims[0].dim_value == batch[0] == batch[1]:
            yield (
                f"input {value.name} has a batch of {dims[0].dim_value}, its metadata {batch[0]} to"
                f" {batch[1]}; export it again"
            )


def _quantisation_problems(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> Iterator[str]:
    """One line for each scale or zero point of a (de)quantising node that TensorRT refuses."""
    where = describe_node(node)
    scale = constants.get(node.input[1])
    if scale is None:
        yield f"{where}: its scale is not a constant; calibrate again"
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"{where}: its scale is {scale.min()}, a positive number is needed; calibrate again"
    given = len(node.input) > 2 and bool(node.input[2])
    zero = constants.get(node.input[2]) if given else None
    if given and zero is not None and zero.dtype == np.int32:
        yield f"{where}: a bias is quantised to int32, which is not supported; leave biases in floating point"
    elif (zero is None or zero.dtype != np.int8 or zero.any()) and (
        given or node.op_type == "QuantizeLinear"
    ):
        yield f"{where}: only int8 with zero point 0 is allowed; quantise symmetrically to signed integers"


def _inferred_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value whose type can be inferred."""
    try:
        return element_types(onnx.shape_inference.infer_shapes(model))
    except onnx.shape_inference.InferenceError as error:
        raise YolactError(f"the graph contradicts itself: {str(error).splitlines()[0]}") from error
