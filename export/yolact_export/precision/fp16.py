"""Half precision as types in the graph: what a strongly typed TensorRT and every other runtime obeys.

The converters of onnxruntime and onnxconverter-common surround every node that stays float32 with casts to
half, so that what passes between two such nodes is rounded all the same, and box decoding with it. Here a
tensor is cast only where it passes from one side to the other, and once.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from yolact_export.precision.layers import DETECTION, PREPROCESSING, float_tensors, layer_group, scope

_ARITHMETIC = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "LeakyRelu", "Clip", "Add", "Mul", "Sigmoid", "Tanh",
    "MaxPool", "AveragePool", "Resize", "ReduceMax",
}  # fmt: skip
# They compute nothing: they take the type that comes in.
_MOVES = {"Transpose", "Reshape", "Concat", "Slice", "Squeeze", "Unsqueeze", "Flatten"}


def to_half(model: onnx.ModelProto, keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """The network in half; preprocessing and detection, inputs and outputs stay as they are.

    Args:
        model: The float32 graph, with inferred types; it is left alone.
        keep_float: Layer groups to leave in float32.

    Returns:
        A graph in which every operator's float inputs are of one type. Tensors keep their names, whatever
        their type became.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Conversion(result, keep_float).run()
    del result.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)


class _Conversion:
    def __init__(self, model: onnx.ModelProto, keep_float: Collection[str]) -> None:
        self.graph = model.graph
        self.floats = float_tensors(model)
        self.keep_float = keep_float
        self.outputs = {value.name for value in self.graph.output}
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        # Sampling positions are pixels: half has 0.06 of one left at 100. The samples go with them.
        self.sampling = {scope(n).rpartition("/")[0] for n in self.graph.node if n.op_type == "GridSample"}
        self.halves: dict[str, str] = {}  # tensor -> its name in half
        self.singles: dict[str, str] = {}  # half tensor -> its name in float32
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        for node in list(self.graph.node):
            half = self._is_half(node)
            for index, name in enumerate(node.input):
                if name not in self.floats or (node.op_type == "Resize" and index):
                    continue
                if half:
                    node.input[index] = self._half(name)
                elif name in self.halves and name not in self.initializers:
                    # The shape is the same in either type.
                    node.input[index] = self.halves[name] if node.op_type == "Shape" else self._single(name)
            self.nodes.append(node)
            if half:
                self._produce(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _is_half(self, node: onnx.NodeProto) -> bool:
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
            self.singles[name] = f"{name}_float32"
            self._cast(self.halves[name], self.singles[name], TensorProto.FLOAT)
        return self.singles[name]

    def _produce(self, node: onnx.NodeProto) -> None:
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
    """A float32 stand-in for a half-precision graph that rounds after every node.

    ONNX Runtime has hardly any half-precision operators on CPUs: it computes in float32 and leaves out the
    rounding between neighbours, which makes a half graph look better than it is. This one computes what a
    device does that multiplies halves and accumulates in float32.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    half = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        rounded = [name for name in node.output if name in half]
        to_half_cast = node.op_type == "Cast" and bool(rounded)
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name not in half:
                continue
            exact, short = f"{name}/exact", f"{name}/rounded"
            if to_half_cast:
                node.output[index] = short
            else:
                node.output[index] = exact
                nodes.append(helper.make_node("Cast", [exact], [short], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [short], [name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
