"""Half precision as types in the graph, which strongly typed TensorRT and all other runtimes follow.

The converters of onnxruntime and onnxconverter-common put casts to half around every node that stays float32,
so that tensors between two such nodes are rounded anyway, also in box decoding. Here a tensor is cast only if
it passes from one type to the other, and once.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxscript.optimizer import remove_unused_nodes

from yolact_export.precision.layers import (
    DETECTION,
    PREPROCESSING,
    SINGLE,
    float_tensors,
    layer_group,
    scope,
)

_ARITHMETIC = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "LeakyRelu", "Clip", "Add", "Mul", "Sigmoid", "Tanh",
    "MaxPool", "AveragePool", "Resize", "ReduceMax",
}  # fmt: skip
# These compute nothing and keep the type of their input.
_MOVES = {"Transpose", "Reshape", "Concat", "Slice", "Squeeze", "Unsqueeze", "Flatten"}


def to_half(model: onnx.ModelProto, keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """Convert the network to half precision; preprocessing, detection, inputs and outputs keep their types.

    Args:
        model: The float32 graph, with inferred types; it is not changed.
        keep_float: Layer groups to keep in float32.

    Returns:
        A graph in which the float inputs of each operator have one type. Tensors keep their names.
    """
    result = copy.deepcopy(model)
    _Conversion(result, keep_float).run()
    remove_unused_nodes(result)
    del result.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)


class _Conversion:
    """Converts a graph in place, node by node."""

    def __init__(self, model: onnx.ModelProto, keep_float: Collection[str]) -> None:
        """Collect the tensors that the conversion depends on."""
        self.graph = model.graph
        self.floats = float_tensors(model)
        self.keep_float = keep_float
        self.outputs = {value.name for value in self.graph.output}
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        # Sampling positions stay float32, as half resolves only 0.06 of a pixel at 100; so do the samples.
        self.sampling = {scope(n).rpartition("/")[0] for n in self.graph.node if n.op_type == "GridSample"}
        self.halves: dict[str, str] = {}  # tensor -> its name in half
        self.singles: dict[str, str] = {}  # half tensor -> its name in float32
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        """Rewrite the nodes; the initializers that nothing reads any more remain."""
        for node in list(self.graph.node):
            half = self._is_half(node)
            for index, name in enumerate(node.input):
                if name not in self.floats or (node.op_type == "Resize" and index):
                    continue
                if half:
                    node.input[index] = self._half(name)
                elif name in self.halves and name not in self.initializers:
                    # The shape is the same in both types.
                    node.input[index] = self.halves[name] if node.op_type == "Shape" else self._single(name)
            self.nodes.append(node)
            if half:
                self._produce(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)

    def _is_half(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes in half."""
        group = layer_group(node)
        if group in (PREPROCESSING, DETECTION) or not node.output or node.output[0] not in self.floats:
            return False
        if node.op_type in _MOVES:
            moved = [name for name in node.input if name in self.floats]
            return all(name in self.halves for name in moved)
        if group in self.keep_float or node.op_type not in _ARITHMETIC:
            return False
        return node.op_type == "Conv" or scope(node).rpartition("/")[0] not in self.sampling

    def _half(self, name: str) -> str:
        """Name of a float32 tensor's half version, which is created on the first call."""
        if name not in self.halves:
            self.halves[name] = f"{name}_float16"
            if name in self.initializers:
                values = numpy_helper.to_array(self.initializers[name])
                with np.errstate(over="ignore"):
                    half = values.astype(np.float16)
                self.graph.initializer.append(numpy_helper.from_array(half, self.halves[name]))
            else:
                self._cast(name, self.halves[name], TensorProto.FLOAT16)
                self.singles[name] = name
        return self.halves[name]

    def _single(self, name: str) -> str:
        if name not in self.singles:
            self.singles[name] = name + SINGLE
            self._cast(self.halves[name], self.singles[name], TensorProto.FLOAT)
        return self.singles[name]

    def _produce(self, node: onnx.NodeProto) -> None:
        """Register the outputs of a half node; outputs of the graph are cast back to float32."""
        for index, name in enumerate(node.output):
            if name not in self.floats:
                continue
            self.halves[name] = name
            if name in self.outputs:
                self.halves[name] = node.output[index] = f"{name}_float16"
                self.singles[name] = name
                self._cast(self.halves[name], name, TensorProto.FLOAT)

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind))


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Emulate a half-precision graph in float32, with rounding after every node.

    ONNX Runtime has hardly any half-precision operators on CPUs: it computes in float32 and skips the
    rounding between nodes, which makes a half graph look better than it is. The emulation computes what a GPU
    does that multiplies halves and accumulates in float32.
    """
    result = copy.deepcopy(model)
    graph = result.graph
    half = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name not in half:
                continue
            exact, rounded = f"{name}/exact", f"{name}/rounded"
            if node.op_type == "Cast":
                node.output[index] = rounded
            else:
                node.output[index] = exact
                nodes.append(helper.make_node("Cast", [exact], [rounded], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
