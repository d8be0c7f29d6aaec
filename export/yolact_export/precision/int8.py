"""Int8 as QuantizeLinear and DequantizeLinear nodes in the graph.

They are placed as TensorRT expects: only before convolutions, symmetric (zero point 0) for activations and
weights, with one scale for each output channel of a weight, and biases in float.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnxscript.optimizer import remove_unused_nodes

from yolact_export.precision.layers import layer_group

# Not MatMul: here it multiplies two activations, which detection needs exact.
OPERATORS = ("Conv", "ConvTranspose", "Gemm")


def quantisable(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that can be computed in integers: those with constant weights."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in OPERATORS and node.input[1] in constants]


def to_int8(model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> onnx.ModelProto:
    """Quantise all convolutions with constant weights; `restore_float` then exempts some.

    Args:
        model: The float32 graph; it is not changed.
        ranges: Smallest and largest value of every tensor that enters a convolution.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    chosen = {node.output[0] for node in quantisable(model)}
    source = copy.deepcopy(model)
    for node in source.graph.node:
        # The quantiser selects nodes by name; the name of an output is unique and always present.
        node.name = node.name or node.output[0]
    data = TensorsData(
        CalibrationMethod.MinMax,
        {
            name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
            for name, (low, high) in ranges.items()
        },
    )
    quantiser = QDQQuantizer(
        model=source,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=data,
        nodes_to_quantize=[node.name for node in source.graph.node if node.output[0] in chosen],
        nodes_to_exclude=[],
        op_types_to_quantize=list(OPERATORS),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "QDQDisableWeightAdjustForInt32Bias": True,
            "OpTypesToExcludeOutputQuantization": list(OPERATORS),
        },
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    result = quantiser.model.model
    del result.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)


def restore_float(
    quantised: onnx.ModelProto, model: onnx.ModelProto, keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """The quantised graph with some layer groups back in float32.

    The quantiser gives the rounded tensor to all its readers. Here only quantised convolutions read it.
    Shortcuts are added in float: with a new rounding in every block, the sum would drift.

    Args:
        quantised: `to_int8` of `model`; it is not changed.
        model: The float32 graph.
        keep_float: Layer groups to restore.
    """
    result = copy.deepcopy(quantised)
    graph = result.graph
    originals = {node.output[0]: node for node in model.graph.node}
    chosen = {node.output[0] for node in quantisable(model) if layer_group(node) not in keep_float}
    for node in graph.node:
        original = originals.get(node.output[0])
        if original is not None and node.output[0] not in chosen:
            node.input[:] = original.input
    present = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in present)
    remove_unused_nodes(result)
    return result
