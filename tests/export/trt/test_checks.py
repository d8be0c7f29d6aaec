"""What TensorRT would refuse is named before its parser sees it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from yolact_export.trt.checks import check_graph
from yolact_export.trt.target import Target
from yolact_runtime.errors import YolactError

RTX_75 = Target("tensorrt_rtx", ("7.5",), None)
RTX_86 = Target("tensorrt_rtx", ("8.6",), None)
TRT_75 = Target("tensorrt", ("7.5",), None)


def graph(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str] = (1, 4000),
    constants: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """A graph of `nodes` from "x", float32 of `shape`, to "y"."""
    initial = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    return helper.make_model(
        helper.make_graph(list(nodes), "g", [x], [y], initial), opset_imports=imports, ir_version=8
    )


def one(operator: str, *inputs: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    outputs = ["y", "i"] if operator == "TopK" else ["y"]
    return helper.make_node(operator, ["x", *inputs], outputs, name="pick", domain=domain, **attributes)


def quantise(scale: float = 0.1, zero: np.ndarray | None = None) -> onnx.ModelProto:
    zero = np.array(0, np.int8) if zero is None else zero
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="pick"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="back"),
    ]
    return graph(nodes, constants={"s": np.array(scale, np.float32), "z": zero})


MATRIX = {"w": np.ones((4000, 8), np.float32)}


@pytest.mark.parametrize(
    ("model", "target", "words"),
    [
        (graph([one("Mystery", domain="com.example")]), RTX_86, r"pick \(Mystery\).*domain com\.example"),
        (graph([one("Mystery", domain="com.example")]), TRT_75, r"TensorRT cannot .*domain com\.example"),
        (graph([one("NonZero")]), RTX_86, r"pick \(NonZero\).*depend on data"),
        (graph([one("NonMaxSuppression", "x")]), RTX_86, r"pick \(NonMaxSuppression\)"),
        (graph([one("TopK", "k")], constants={"k": np.array([3841])}), RTX_86, "k is 3841, at most 3840"),
        (graph([one("TopK", "x")]), RTX_86, "k is not a constant"),
        (graph([one("MatMul", "w")], constants=MATRIX), RTX_75, r"pick \(MatMul\) multiplies float32"),
        (graph([one("Gemm", "w")], constants=MATRIX), RTX_75, r"pick \(Gemm\) multiplies float32"),
        (graph([one("Cast", to=TensorProto.BFLOAT16)]), RTX_75, None),
        (graph([one("ConvInteger", "x")]), RTX_86, r"pick \(ConvInteger\) is not supported"),
        (graph([one("Relu")], ("n", 4)), RTX_86, "dynamic batch.*--max-batch"),
        (graph([one("Relu")], (1, "w")), RTX_86, "dynamic sizes besides the batch"),
        (graph([one("Relu")], (2, 4)), RTX_86, "batch of 2, its metadata 1 to 1"),
        (quantise(scale=0.0), RTX_86, r"pick \(QuantizeLinear\): its scale is 0\.0"),
        (quantise(scale=float("nan")), RTX_86, "its scale is nan"),
        (quantise(zero=np.array(3, np.int8)), RTX_86, "only int8 with zero point 0.*and 1 more"),
        (quantise(zero=np.array(0, np.uint8)), RTX_86, "only int8 with zero point 0"),
        (quantise(zero=np.array(0, np.int32)), RTX_86, "leave biases in floating point"),
    ],
)
def test_what_is_refused_is_named(model: onnx.ModelProto, target: Target, words: str | None) -> None:
    if words is None:  # bfloat16 shows only through inference: declare the output as what it is
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
        words = r"pick \(Cast\) uses bfloat16"
    with pytest.raises(YolactError, match=words):
        check_graph(model, target, (1, 1))


@pytest.mark.parametrize(
    ("model", "target", "batch"),
    [
        (graph([one("TopK", "k")], constants={"k": np.array([3840])}), RTX_75, (1, 1)),
        (graph([one("MatMul", "w")], constants=MATRIX), RTX_86, (1, 1)),
        (graph([one("MatMul", "w")], constants=MATRIX), TRT_75, (1, 1)),
        (graph([one("Relu")], ("n", 4)), RTX_86, (1, 8)),
        (quantise(), RTX_86, (1, 1)),
    ],
)
def test_what_is_allowed(model: onnx.ModelProto, target: Target, batch: tuple[int, int]) -> None:
    check_graph(model, target, batch)


def test_a_graph_that_contradicts_itself() -> None:
    model = graph([helper.make_node("TopK", ["x", "k"], ["y"])], constants={"k": np.array([2])})
    with pytest.raises(YolactError, match="contradicts itself"):
        check_graph(model, RTX_75, (1, 1))


def test_nodes_inside_branches_are_seen() -> None:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branch = helper.make_graph([one("Mystery", domain="com.example")], "b", [], [y])
    model = graph([helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)])
    with pytest.raises(YolactError, match="of the domain com"):
        check_graph(model, RTX_86, (1, 1))
