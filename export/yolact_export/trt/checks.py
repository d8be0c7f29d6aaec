"""What TensorRT would refuse in a graph, found before its parser sees it.

The parser stops at the first error, some of its errors name no node, and some graphs have been seen to make
TensorRT-RTX end the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from yolact_export.nodes import MAX_TOPK, describe_node, nodes
from yolact_export.trt.target import RTX, Target
from yolact_runtime.errors import YolactError

DATA_DEPENDENT = {"NonMaxSuppression", "NonZero", "Unique", "Loop", "Scan"}
# Quantised operators of ONNX; TensorRT reads quantisation from QuantizeLinear and DequantizeLinear around
# ordinary ones.
QUANTISED = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}
MATRIX_PRODUCTS = {"MatMul", "Gemm", "Einsum"}


def check_graph(model: onnx.ModelProto, target: Target, batch: tuple[int, int]) -> None:
    """Check that `target` takes the graph.

    Args:
        model: Small enough for protobuf (2 GB), as everything yolact-export writes.
        target: Library and compute capabilities.
        batch: Fewest and most images in one call, as the metadata says.

    Raises:
        YolactError: names the first node in the way, its operator and what to do; counts the others.
    """
    problems = list(_problems(model, target, batch))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise YolactError(f"{target.title} cannot build this graph: {problems[0]}{more}")


def _problems(model: onnx.ModelProto, target: Target, batch: tuple[int, int]) -> Iterator[str]:
    yield from _inputs(model.graph, batch)
    constants = _constants(model.graph)
    turing = target.library == RTX and "7.5" in target.capabilities
    types = _element_types(model) if turing else {}
    for node in nodes(model.graph):
        where = describe_node(node)
        if node.domain not in ("", "ai.onnx"):
            yield (
                f"{where} is of the domain {node.domain}, which it does not know; export with"
                " --detect native or --detect runtime"
            )
            continue
        if node.op_type in DATA_DEPENDENT:
            yield f"{where} makes shapes depend on data; export with yolact-export, which writes none"
        elif node.op_type in QUANTISED:
            yield f"{where} is not read; quantise with QuantizeLinear and DequantizeLinear (--precision int8)"
        elif node.op_type == "TopK":
            k = constants.get(node.input[1])
            if k is None:
                yield f"{where}: k is not a constant; export with a fixed number of candidates"
            elif k.item() > MAX_TOPK:
                yield (
                    f"{where}: k is {k.item()}, at most {MAX_TOPK} is allowed; lower detect.nms_top_k or"
                    " detect.max_detections"
                )
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _quantisation(node, constants)
        used = {types.get(name) for name in (*node.input, *node.output)}
        if turing and TensorProto.BFLOAT16 in used:
            yield f"{where} uses bfloat16, which capability 7.5 lacks; use --precision fp16"
        elif turing and node.op_type in MATRIX_PRODUCTS and TensorProto.FLOAT in used:
            yield (
                f"{where} multiplies float32 matrices, which TensorRT-RTX does not do on capability 7.5;"
                " export with --detect runtime, or build for 8.0 and later"
            )


def _inputs(graph: onnx.GraphProto, batch: tuple[int, int]) -> Iterator[str]:
    initial = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in initial:
            continue
        dims = value.type.tensor_type.shape.dim
        open_axes = [axis for axis, dim in enumerate(dims) if not dim.HasField("dim_value")]
        if not dims or any(axis > 0 for axis in open_axes):
            yield f"input {value.name} has open sizes besides the batch; export with a fixed input size"
        elif open_axes and batch[0] == batch[1]:
            yield (
                f"input {value.name} has an open batch, but its metadata allows only {batch[0]}; export with"
                " --max-batch"
            )
        elif not open_axes and not dims[0].dim_value == batch[0] == batch[1]:
            yield (
                f"input {value.name} has a batch of {dims[0].dim_value}, its metadata {batch[0]} to"
                f" {batch[1]}; export it again"
            )


def _quantisation(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> Iterator[str]:
    where = describe_node(node)
    scale = constants.get(node.input[1])
    if scale is None:
        yield f"{where}: its scale is not a constant; calibrate again"
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"{where}: its scale is {scale.min()}, a positive number is needed; calibrate again"
    given = len(node.input) > 2 and bool(node.input[2])
    zero = constants.get(node.input[2]) if given else None
    if given and zero is not None and zero.dtype == np.int32:
        yield f"{where}: a bias is quantised to int32, which is not read; leave biases in floating point"
    elif (zero is None or zero.dtype != np.int8 or zero.any()) and (
        given or node.op_type == "QuantizeLinear"
    ):
        yield f"{where}: only int8 with zero point 0 is allowed; quantise symmetrically to signed integers"


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Values of small initialisers and Constant nodes by name."""
    found = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if np.prod(tensor.dims, dtype=np.int64) <= 1 << 16
    }
    for node in nodes(graph):
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
    return found


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value whose type is known."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError as error:
        raise YolactError(f"the graph contradicts itself: {str(error).splitlines()[0]}") from error
    found = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        found[value.name] = value.type.tensor_type.elem_type
    return found
