"""What an ONNX graph computes and in which types: counted from the graph, not from what was asked for."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from yolact_export.precision.layers import COMPUTE, elem_types, layer_group
from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.metadata import Metadata

_FLOATS: dict[int | None, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "float64",
}
_INTEGERS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
TYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
# Of the compute that was to be reduced. In int8 a part may be found sensitive and kept in float32.
REQUIRED = {"fp16": 0.95, "int8": 0.8}


@dataclass(frozen=True)
class LayerCompute:
    """One convolution or matrix product.

    Attributes:
        name: Of the node, or of its output where it has none.
        group: Part of the network.
        kind: "float32", "float16", ..., or "int8" where data and weights both come out of a
            DequantizeLinear: what runtimes turn into integer arithmetic.
        macs: Multiply-accumulates for one image; 0 where the graph does not say its shapes.
    """

    name: str
    group: str
    kind: str
    macs: int


def read_graph(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file, with inferred types.

    Raises:
        YolactError: not there, cut off, or something else.
    """
    try:
        model = onnx.load(path)
        if not model.graph.node:
            raise ValueError("it holds no graph")
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except FileNotFoundError:
        raise YolactError(f"ONNX file {path} does not exist") from None
    except OSError as error:
        raise YolactError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # protobuf and onnx raise kinds of their own
        raise YolactError(
            f"{path} is damaged or not an ONNX file ({first_line(error)}); copy or export it again"
        ) from error


def read_described(path: str | Path) -> tuple[onnx.ModelProto, Metadata]:
    """Read an ONNX file of ours and what it says of itself.

    Raises:
        YolactError: as `read_graph`, or a field of the metadata is missing or wrong.
    """
    model = read_graph(path)
    return model, Metadata.from_props({prop.key: prop.value for prop in model.metadata_props}, path)


def layer_compute(model: onnx.ModelProto) -> list[LayerCompute]:
    """All convolutions and matrix products of a graph, in its order."""
    single, batch = _one_image(model)
    shapes = _shapes(single)
    kinds = elem_types(single)
    made = {name: node for node in single.graph.node for name in node.output}

    def kind(node: onnx.NodeProto) -> str:
        sources = [made.get(name) for name in node.input[:2]]
        if all(source is not None and _from_integers(source, kinds) for source in sources):
            return "int8"
        return _FLOATS.get(kinds.get(node.input[0]), "unknown")

    return [
        LayerCompute(node.name or node.output[0], layer_group(node), kind(node), _macs(node, shapes) // batch)
        for node in single.graph.node
        if node.op_type in COMPUTE
    ]


def _from_integers(node: onnx.NodeProto, kinds: dict[str, int]) -> bool:
    return node.op_type == "DequantizeLinear" and kinds.get(node.input[0]) in _INTEGERS


def _one_image(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The graph with all shapes inferred, for one image where its batch is open, and the images in it.

    A fixed batch is in constants of the graph too, so that another one would contradict them.
    """
    sizes = [value.type.tensor_type.shape.dim[0].dim_value for value in model.graph.input[:1]]
    if sizes and sizes[0]:
        return onnx.shape_inference.infer_shapes(model, data_prop=True), sizes[0]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for value in graph.input:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(result, data_prop=True), 1
    except Exception:  # a graph that fixes its batch elsewhere: with its own shapes then
        return model, 1


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shapes[value.name] = [dim.dim_value for dim in kind.shape.dim]
    return shapes


def _macs(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    data, weight, out = (shapes.get(name, []) for name in (*node.input[:2], node.output[0]))
    if not data or not weight or not out:
        return 0
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(out) * data[0 if transposed else 1]
    return math.prod(out) * data[-1]


def shares(layers: Iterable[LayerCompute], without: Collection[str] = ()) -> dict[str, float]:
    """Share of the compute by type, 0..1, largest first; layers of the groups `without` do not count."""
    macs: dict[str, int] = defaultdict(int)
    for layer in layers:
        if layer.group not in without:
            macs[layer.kind] += layer.macs
    total = sum(macs.values())
    return {kind: macs[kind] / total for kind in sorted(macs, key=lambda kind: -macs[kind])} if total else {}


def by_group(layers: Iterable[LayerCompute]) -> dict[str, list[LayerCompute]]:
    """The layers of each group, in the order of the graph."""
    groups: dict[str, list[LayerCompute]] = defaultdict(list)
    for layer in layers:
        groups[layer.group].append(layer)
    return dict(groups)


def delivered(layers: Iterable[LayerCompute], precision: str, named: Collection[str] = ()) -> tuple[str, str]:
    """What precision a graph has, whatever was asked for.

    Args:
        layers: Of the graph.
        precision: What was asked for: "fp32", "fp16" or "int8".
        named: Layer groups that the user asked to leave in float32.

    Returns:
        The precision delivered, and, where that is less than asked, one line that says so (else "").
    """
    layers = list(layers)
    required = REQUIRED.get(precision, 1.0)
    share = shares(layers, named).get(TYPES[precision], 0.0)
    if share >= required:
        return precision, ""
    names = {kind: name for name, kind in TYPES.items()}
    found = shares(layers)
    most = names.get(next(iter(found), "float32"), "fp32")
    told = ", ".join(f"{kind} {part:.1%}" for kind, part in found.items()) or "nothing to compute"
    return most, (
        f"{precision} was asked for, but only {share:.1%} of the compute that was to be reduced is"
        f" {TYPES[precision]} ({required:.0%} is required; in all: {told})"
    )
