"""How much a graph computes in which types: counted in the graph, whatever precision was requested."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx

from yolact_export.onnx_graph import element_types
from yolact_export.precision.layers import COMPUTE, DETECTION, layer_group
from yolact_runtime.errors import counted

_INTEGERS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
TYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
# Required share of the compute to be reduced. In int8, some of it may stay in float32 as too sensitive.
REQUIRED = {"fp16": 0.95, "int8": 0.8}


@dataclass(frozen=True)
class LayerCompute:
    """One convolution or matrix product.

    Attributes:
        name: The node's name, or else its output's.
        group: Layer group, see `layer_group`.
        kind: "float32", "float16", ..., or "int8" if data and weights both come from a DequantizeLinear,
            which runtimes turn into integer arithmetic.
        macs: Multiply-accumulates for one image; 0 if the graph lacks the shapes.
    """

    name: str
    group: str
    kind: str
    macs: int


def layer_compute(model: onnx.ModelProto) -> list[LayerCompute]:
    """All convolutions and matrix products of a graph, in the graph's order."""
    single, batch = _one_image(model)
    shapes = _shapes(single)
    kinds = element_types(single)
    producer = {name: node for node in single.graph.node for name in node.output}

    def kind(node: onnx.NodeProto) -> str:
        sources = [producer.get(name) for name in node.input[:2]]
        quantised = [source for source in sources if source and source.op_type == "DequantizeLinear"]
        if len(quantised) == 2 and all(kinds.get(source.input[0]) in _INTEGERS for source in quantised):
            return "int8"
        found = kinds.get(node.input[0])
        return str(onnx.helper.tensor_dtype_to_np_dtype(found)) if found else "unknown"

    return [
        LayerCompute(node.name or node.output[0], layer_group(node), kind(node), _macs(node, shapes) // batch)
        for node in single.graph.node
        if node.op_type in COMPUTE
    ]


def _one_image(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The graph with all shapes inferred, and its batch: 1 if that is dynamic.

    A fixed batch is kept, because constants of the graph depend on it.
    """
    sizes = [dim.dim_value for value in model.graph.input[:1] for dim in value.type.tensor_type.shape.dim]
    if sizes and sizes[0]:
        return onnx.shape_inference.infer_shapes(model, data_prop=True), sizes[0]
    result = copy.deepcopy(model)
    for value in result.graph.input:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    for value in result.graph.output:
        value.type.tensor_type.ClearField("shape")
    del result.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(result, data_prop=True), 1
    except onnx.shape_inference.InferenceError:  # the batch is fixed elsewhere: keep the graph's own shapes
        return model, 1


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Sizes of every tensor with a known shape; 0 for a dynamic size."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shapes[value.name] = [dim.dim_value for dim in kind.shape.dim]
    return shapes


def _macs(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    """Multiply-accumulates of a convolution or matrix product; 0 if a shape is unknown."""
    data, weight, out = (shapes.get(name, []) for name in (*node.input[:2], node.output[0]))
    if not data or not weight or not out:
        return 0
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(out) * data[0 if transposed else -1]
    return math.prod(out) * data[-1]


def shares(layers: Iterable[LayerCompute], without: Collection[str] = ()) -> dict[str, float]:
    """Share of the compute by type, 0..1, largest first, without the layer groups in `without`."""
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


def percentages(shares: Mapping[str, float]) -> str:
    """Shares (0..1) as text, such as "int8 90.1%, float32 9.9%"."""
    return ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())


def delivered(layers: Iterable[LayerCompute], precision: str, named: Collection[str] = ()) -> tuple[str, str]:
    """The precision that a graph really has.

    Args:
        layers: All layers of the graph.
        precision: The requested one: "fp32", "fp16" or "int8".
        named: Layer groups that the user keeps in float32.

    Returns:
        The precision, and one line that explains a shortfall ("" if there is none).
    """
    layers = list(layers)
    required = REQUIRED.get(precision, 1.0)
    share = shares(layers, named).get(TYPES[precision], 0.0)
    # Layers of unknown shape have no weight in the share. Detection, which has some, always stays in float32.
    rest = [one for one in layers if not one.macs and one.group not in (*named, DETECTION)]
    unknown = [one for one in rest if one.kind != TYPES[precision]]
    if share >= required and not unknown:
        return precision, ""
    names = {kind: name for name, kind in TYPES.items()}
    found = shares(layers)
    most = names.get(next(iter(found), "float32"), "fp32")
    total = percentages(found) or "no compute"
    total += f"; {counted(len(unknown), 'layer')} of unknown shape" if unknown else ""
    return most, (
        f"{precision} was requested, but only {share:.1%} of the compute to be reduced is"
        f" {TYPES[precision]} ({required:.0%} is required; in total: {total})"
    )
