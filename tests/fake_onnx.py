"""Small engines whose detections are known, so that the runtime can be tested without a trained model."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from yolact_runtime.metadata import Metadata, PriorSpec

SIZE = 16
NATIVE = Metadata(
    config="fake",
    class_names=("cat", "dog", "bird"),
    category_ids=(0, 7, 90),
    input_size=SIZE,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    max_detections=4,
    max_batch=3,
)
RUNTIME = dataclasses.replace(
    NATIVE,
    detect="runtime",
    priors=PriorSpec(levels=((2, 2),), scales=((8.0,),), aspect_ratios=(1.0,), square=True),
)
# Two instances: the left half of the image and its bottom right quarter; every mask fills its box.
BOXES = np.array([[0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]], np.float32)
SCORES = np.array([0.9, 0.3], np.float32)
CLASSES = np.array([1, 0], np.int32)


def native_arrays() -> dict[str, np.ndarray]:
    """The outputs for one white image, padded to K = 4."""
    k = NATIVE.max_detections
    pad = ((0, k - 2), (0, 0))
    return {
        "count": np.array([2], np.int32),
        "boxes": np.pad(BOXES, pad)[None],
        "scores": np.pad(SCORES, pad[0])[None],
        "classes": np.pad(CLASSES, pad[0])[None],
        "coefficients": np.pad(np.ones((2, 2), np.float32), pad)[None],
        "prototypes": np.full((1, 8, 8, 2), 3.0, np.float32),
    }


def runtime_arrays() -> dict[str, np.ndarray]:
    """Raw heads: of four priors, the first is surely class 2 and the last likely class 0."""
    logits = np.zeros((1, 4, 4), np.float32)
    logits[..., 0] = 12
    logits[0, 0] = [0, -5, -5, 8]
    logits[0, 3] = [0, 1, -9, -9]
    return {
        "loc": np.zeros((1, 4, 4), np.float32),
        "logits": logits,
        "coefficients": np.ones((1, 4, 2), np.float32),
        "prototypes": np.full((1, 8, 8, 2), 3.0, np.float32),
    }


def write_onnx(path, arrays, metadata, props=None):
    """An ONNX file that returns `arrays` for each image; "scores" times the image's brightest value / 255."""
    kind = TensorProto.UINT8 if metadata.input_dtype == "uint8" else TensorProto.FLOAT
    height, width = metadata.input_shape
    nodes = [
        helper.make_node("Shape", ["images"], ["n"], start=0, end=1),
        helper.make_node("Cast", ["images"], ["float_images"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["float_images", "axes"], ["brightest"], keepdims=0),
        helper.make_node("Div", ["brightest", "white"], ["light"]),
        helper.make_node("Unsqueeze", ["light", "last"], ["factor"]),
    ]
    constants = {
        "axes": np.array([1, 2, 3]),
        "white": np.array(255, np.float32),
        "last": np.array([1]),
    }
    outputs = []
    for name, array in arrays.items():
        constants[f"{name}_value"] = array
        constants[f"{name}_rest"] = np.array(array.shape[1:], np.int64)
        expanded = f"{name}_all" if name == "scores" else name
        nodes.append(helper.make_node("Concat", ["n", f"{name}_rest"], [f"{name}_shape"], axis=0))
        nodes.append(helper.make_node("Expand", [f"{name}_value", f"{name}_shape"], [expanded]))
        if name == "scores":
            nodes.append(helper.make_node("Mul", ["scores_all", "factor"], ["scores"]))
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        outputs.append(helper.make_tensor_value_info(name, element, ["N", *array.shape[1:]]))
    images = helper.make_tensor_value_info("images", kind, ["N", height, width, 3])
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "fake", [images], outputs, initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, metadata.to_props() if props is None else props)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def pack_mask_iou_net(layers) -> str:
    """The metadata's form of [(weight, bias), ...]."""
    arrays = {}
    for index, (weight, bias) in enumerate(layers):
        arrays[f"weight{index}"], arrays[f"bias{index}"] = weight, bias
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return base64.b64encode(buffer.getvalue()).decode()


QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def int8_file(path: Path, relu: bool) -> Path:
    """An engine with a quantised convolution, with or without a ReLU before the next rounding."""
    write_onnx(path, native_arrays(), dataclasses.replace(NATIVE, precision="int8"))
    model = onnx.load(path)
    graph = model.graph
    del graph.node[next(i for i, node in enumerate(graph.node) if list(node.output) == ["prototypes"])]
    kind = np.int8 if relu else np.uint8
    values = {
        "scale": np.array(0.5, np.float32),
        "zero": np.array(0, kind),
        "weight_zero": np.array(0, np.int8),
        "weight": np.ones((2, 3, 1, 1), np.int8),
    }
    graph.initializer.extend([numpy_helper.from_array(value, name) for name, value in values.items()])
    convolved = "convolved" if relu else "activated"
    steps = [
        ("Transpose", ["float_images"], "planes"),
        (QUANTISE, ["planes", "scale", "zero"], "rounded"),
        (DEQUANTISE, ["rounded", "scale", "zero"], "input"),
        (DEQUANTISE, ["weight", "scale", "weight_zero"], "filter"),
        ("Conv", ["input", "filter"], convolved),
        *([("Relu", ["convolved"], "activated")] if relu else []),
        (QUANTISE, ["activated", "scale", "zero"], "rounded_again"),
        (DEQUANTISE, ["rounded_again", "scale", "zero"], "output"),
        ("Transpose", ["output"], "prototypes"),
    ]
    perms = {"planes": [0, 3, 1, 2], "prototypes": [0, 2, 3, 1]}
    for kind_, inputs, output in steps:
        more = {"perm": perms[output]} if output in perms else {}
        graph.node.append(helper.make_node(kind_, inputs, [output], **more))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
