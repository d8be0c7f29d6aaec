"""Where int8 graphs round: the tensors that are quantised, and the tensors whose ranges they take.

ONNX Runtime computes a convolution in integers only between a DequantizeLinear of each input and a
QuantizeLinear right behind it; a Relu between them is part of the rounding, if that is unsigned with zero
point 0. Sums of shortcuts and pooling are integer operators, too, so tensors stay bytes between convolutions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import onnx

from yolact_export.precision.layers import DETECTION, HEAD_OUTPUTS, PREPROCESSING, layer_group

# Not MatMul: here it multiplies two activations, which detection needs exact.
OPERATORS = ("Conv", "ConvTranspose", "Gemm")
# Their output lies within the range of their input.
_SAME_RANGE = ("MaxPool", "Resize")
_POSITIVE = ("Relu", "Sigmoid", "Softmax")
_OUTSIDE = (PREPROCESSING, DETECTION, HEAD_OUTPUTS)


@dataclass(frozen=True)
class Rounding:
    """How a tensor is rounded.

    Attributes:
        range_of: The tensor whose range it takes; itself, or what was pooled or resized.
        unsigned: No value is below 0.
    """

    range_of: str
    unsigned: bool


def quantisable(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that can be computed in integers: those with constant weights."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in OPERATORS and node.input[1] in constants]


def roundings(model: onnx.ModelProto, keep_float: Collection[str] = ()) -> dict[str, Rounding]:
    """The tensors to quantise, by name, with some layer groups in float32.

    Those are the inputs and results of all convolutions with constant weights, and the results of sums,
    pooling and resizing between them. A Relu that alone reads a result belongs to it.
    """
    chosen = [node for node in quantisable(model) if layer_group(node) not in keep_float]
    constants = {tensor.name for tensor in model.graph.initializer}
    readers = tensor_readers(model)
    found = {node.input[0] for node in chosen}
    found |= {result_of(node, readers) for node in chosen}
    for node in model.graph.node:
        data = [name for name in node.input if name and name not in constants]
        if layer_group(node) in (*keep_float, *_OUTSIDE) or not node.output:
            continue
        sums = node.op_type == "Add" and len(data) == 2
        if sums or node.op_type == "LeakyRelu":
            inside = found.issuperset(data)
        else:
            inside = node.op_type in _SAME_RANGE and node.input[0] in found
        if inside:
            found.add(result_of(node, readers))
    producer = {name: node for node in model.graph.node for name in node.output}
    return {name: _rounding(name, producer) for name in sorted(found)}


def _rounding(tensor: str, producer: dict[str, onnx.NodeProto]) -> Rounding:
    """The rounding of a tensor, from what computes it."""
    root, unsigned = tensor, False
    while (node := producer.get(root)) is not None:
        unsigned |= node.op_type in _POSITIVE
        source = producer.get(node.input[0]) if node.input else None
        if node.op_type == "Relu" and source is not None and source.op_type in _SAME_RANGE:
            node = source
        if node.op_type not in _SAME_RANGE:
            break
        root = node.input[0]
    return Rounding(root, unsigned)


def tensor_readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read the values of each tensor, except Shape; an empty node for outputs of the graph."""
    readers = defaultdict(list)
    for node in model.graph.node:
        for name in node.input if node.op_type != "Shape" else ():
            readers[name].append(node)
    for value in model.graph.output:
        readers[value.name].append(onnx.NodeProto())
    return readers


def result_of(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> str:
    """The output of a node, or of the Relu that alone reads it."""
    after = readers.get(node.output[0], [])
    return after[0].output[0] if len(after) == 1 and after[0].op_type == "Relu" else node.output[0]
