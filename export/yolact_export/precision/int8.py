"""Eight-bit integers as QuantizeLinear and DequantizeLinear nodes in the graph.

Placed as TensorRT wants them: before the convolutions only, symmetric (zero point 0) for activations and
weights, a scale for every output channel of a weight, biases in float.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx

from yolact_export.precision.layers import layer_group

# MatMul multiplies two activations here (masks), which detection needs exact.
OPERATORS = ("Conv", "ConvTranspose", "Gemm")


def quantisable(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that may be computed in integers: those with constant weights."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in OPERATORS and node.input[1] in constants]


def to_int8(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """Quantise the convolutions of all layer groups but `keep_float`.

    Args:
        model: The float32 graph; it is left alone.
        ranges: Smallest and largest value of every tensor that enters a convolution.
        keep_float: Layer groups to leave in float32; they read the unrounded tensors.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    chosen = {node.output[0] for node in quantisable(model) if layer_group(node) not in keep_float}
    source = onnx.ModelProto()
    source.CopyFrom(model)
    for node in source.graph.node:
        # The quantiser goes by node names; the output's name is unique and always there.
        node.name = node.name or node.output[0]
    if not chosen:
        return source
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
    _read_unrounded(result, chosen)
    del result.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)


def _read_unrounded(model: onnx.ModelProto, chosen: Collection[str]) -> None:
    """Let nodes that are not quantised read the tensors before rounding.

    The quantiser gives every reader of a tensor the rounded one. Only the additions of shortcuts keep it,
    so that the tensor need not be stored in float at all.
    """
    groups = {layer_group(node) for node in model.graph.node if node.output[0] in chosen}
    made = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        shortcut = node.op_type == "Add" and layer_group(node) in groups
        if node.output[0] in chosen or shortcut or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for index, name in enumerate(node.input):
            dequantise = made.get(name)
            if dequantise is not None and dequantise.op_type == "DequantizeLinear":
                quantise = made.get(dequantise.input[0])
                if quantise is not None:
                    node.input[index] = quantise.input[0]
