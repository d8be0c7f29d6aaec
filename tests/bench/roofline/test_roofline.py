"""Counts against sums done by hand, PyTorch's own counter, and the shapes that ONNX Runtime really makes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from yolact.model import Yolact
from yolact.registry import get_config
from yolact_bench import cli
from yolact_bench.roofline import cli as command
from yolact_bench.roofline.ceilings import Ceilings
from yolact_bench.roofline.graph import Roofline, roofline
from yolact_bench.roofline.layers import REASONS, Layer, judge, measure_layers, raised, reasons
from yolact_bench.roofline.work import GraphWork, Work, at_batch, count_work
from yolact_export.onnx import OnnxOptions, write_onnx
from yolact_runtime.errors import UsageError, YolactError

NOW = datetime.now(timezone.utc).isoformat()
LIMITS = Ceilings("made", 1, {"float32": 1e9, "int8": 4e9}, {}, 1e9, NOW)


def tensor(name: str, shape: tuple[object, ...], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, weights) -> onnx.ModelProto:
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "made", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def residual(batch: object = "batch") -> onnx.ModelProto:
    """A 3x3 convolution with ReLU, and a 1x1 whose result is added to it: images of 8 x 8."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="/model/backbone/conv1/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"], name="/model/backbone/Relu"),
        helper.make_node("Conv", ["r", "v"], ["c"], name="/model/fpn/Conv"),
        helper.make_node("Add", ["c", "r"], ["s"], name="/model/fpn/Add"),
        helper.make_node("Reshape", ["s", "flat"], ["y"], name="/model/fpn/Reshape"),
    ]
    weights = {
        "w": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": np.zeros(4, np.float32),
        "v": random.standard_normal((4, 4, 1, 1)).astype(np.float32),
        "flat": np.array([0, -1], np.int64),
    }
    return model(nodes, [tensor("x", (batch, 3, 8, 8))], [tensor("y", (batch, 256))], weights)


@given(st.integers(1, 5))
def test_counts_done_by_hand(batch: int) -> None:
    work = count_work(residual(), batch)
    image, features = 4 * batch * 3 * 64, 4 * batch * 4 * 64  # bytes
    weights = 4 * (4 * 3 * 9 + 4 + 4 * 4)
    operations = {"float32": 2 * batch * 64 * (4 * 3 * 9 + 4 * 4)}
    assert Work.sum(node.work for node in work.unfused) == Work(
        operations, weights, image + 4 * features, 4 * features
    )
    # Two kernels: the first writes what both the second and its addition read, once.
    assert [node.name for node in work.fused] == ["/model/backbone/conv1/Conv", "/model/fpn/Conv"]
    assert [node.part for node in work.fused] == ["backbone", "fpn"]
    assert Work.sum(node.work for node in work.fused) == Work(
        operations, weights, image + features, 2 * features
    )
    assert work.floor == Work(operations, weights, image, features)
    assert work.unknown == ()


def test_quantised_tensors_are_moved_as_integers() -> None:
    """uint8 data, int8 weights, and float only where the result leaves the graph."""
    scale, zero, signed = np.array(0.1, np.float32), np.array(0, np.uint8), np.array(0, np.int8)
    pair = [["q", "s", "z"], ["d"]]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", *pair),
        helper.make_node("DequantizeLinear", ["w8", "s", "z8"], ["w"]),
        helper.make_node("Conv", ["d", "w"], ["y"]),
    ]
    weights = {"w8": np.ones((4, 3, 1, 1), np.int8), "s": scale, "z": zero, "z8": signed}
    graph = model(nodes, [tensor("x", (1, 3, 8, 8))], [tensor("y", (1, 4, 8, 8))], weights)
    work = count_work(graph, 1)
    relu, convolution = work.fused
    assert convolution.work == Work({"int8": 2 * 64 * 12}, 12, 3 * 64, 4 * 4 * 64)
    assert (relu.work.read, relu.work.written) == (4 * 3 * 64, 3 * 64)


def test_what_is_picked_and_what_only_changes_shape() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Unsqueeze", ["c", "axis"], ["u"]),
        helper.make_node("Gather", ["u", "one"], ["y"], axis=2),
    ]
    weights = {"w": np.ones((4, 3, 1, 1), np.float32), "axis": np.array([0]), "one": np.array(1)}
    graph = model(nodes, [tensor("x", (1, 3, 8, 8))], [tensor("y", (1, 1, 8, 8))], weights)
    _, gather = count_work(graph, 1).unfused
    assert (gather.operator, gather.work.read, gather.work.written) == ("Gather", 4 * 64, 4 * 64)


@pytest.fixture(scope="module")
def network() -> Yolact:
    torch.manual_seed(0)
    return Yolact(get_config("yolact_tiny")).eval()


@pytest.fixture(scope="module")
def exported(network: Yolact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("roofline") / "tiny.onnx"
    write_onnx(network, path, OnnxOptions(max_batch=4))
    return path


@pytest.mark.parametrize("batch", [1, 3])
def test_operations_are_those_that_pytorch_counts(network: Yolact, exported: Path, batch: int) -> None:
    size = network.config.model.input_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(batch, 3, size, size))
    found = roofline(exported, batch)
    assert found.work.floor.operations == {"float32": counter.get_total_flops()}
    by_module = counter.get_flop_counts()
    for part, name in (("backbone", "backbone"), ("fpn", "fpn"), ("protonet", "proto_net")):
        expected = sum(by_module[f"Yolact.{name}"].values())
        assert sum(found.parts()[part][0].operations.values()) == expected


@pytest.mark.parametrize("name, giga", [("yolact_resnet50", 118.28), ("yolact_base", 164.68)])
def test_the_figures_quoted_in_the_documentation(name: str, giga: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        Yolact(get_config(name)).eval()(torch.zeros(1, 3, 550, 550))
    assert counter.get_total_flops() / 1e9 == pytest.approx(giga, abs=0.01)


def test_shapes_are_those_that_onnx_runtime_makes(exported: Path) -> None:
    original = onnx.load(exported)
    described = {v.name: v.type.tensor_type for v in at_batch(original, 2).graph.value_info}
    made = [name for node in original.graph.node for name in node.output if name in described]
    assert len(made) > 300
    del original.graph.output[:]
    original.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(original.SerializeToString(), options, ["CPUExecutionProvider"])
    shape = [2, *session.get_inputs()[0].shape[1:]]
    values = session.run(made, {session.get_inputs()[0].name: np.zeros(shape, np.uint8)})
    for name, value in zip(made, values, strict=True):
        kind = described[name]
        assert [size.dim_value for size in kind.shape.dim] == list(value.shape), name
        assert helper.tensor_dtype_to_np_dtype(kind.elem_type) == value.dtype, name


def test_an_operator_nobody_knows_is_named_and_not_counted() -> None:
    graph = residual()
    graph.graph.node.append(helper.make_node("Mystery", ["s"], ["m"], name="odd", domain="far.away"))
    graph.opset_import.append(helper.make_opsetid("far.away", 1))
    assert count_work(graph, 1).unknown == ("odd",)
    # What follows is not counted either, also behind a reshape to a known shape and as an output.
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1, 4, 8, 8]), "shape"))
    graph.graph.node.append(helper.make_node("Reshape", ["m", "shape"], ["n"]))
    graph.graph.node.append(helper.make_node("Relu", ["n"], ["o"], name="after"))
    graph.graph.output.append(onnx.ValueInfoProto(name="m"))
    found = count_work(graph, 1)
    assert found.unknown == ("odd", "after")
    assert found.floor == count_work(residual(), 1).floor


def test_what_cannot_be_counted_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch is 2, but the graph is for 1"):
        count_work(residual(1), 2)
    with pytest.raises(UsageError, match="batch is 0; it must be 1 or more"):
        count_work(residual(), 0)
    relu = model([helper.make_node("Relu", ["x"], ["y"])], [tensor("x", (1, 3))], [tensor("y", (1, 3))], {})
    with pytest.raises(YolactError, match="no convolution or matrix product"):
        count_work(relu, 1)
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(YolactError, match=r"text\.onnx is damaged or not an ONNX file"):
        roofline(tmp_path / "text.onnx")


def test_times_under_made_ceilings() -> None:
    found = Roofline(Path("made.onnx"), count_work(residual(), 1))
    operations, moved = 2 * 64 * 124, 4 * (3 * 64 + 4 * 64 + 128)
    reached = found.reached(LIMITS, measured_ms=1.0)
    assert reached.compute_ms == pytest.approx(operations / 1e6)
    assert reached.memory_ms == pytest.approx(moved / 1e6)
    assert reached.floor_ms == max(reached.compute_ms, reached.memory_ms)
    # The first kernel is limited by its operations, the second by its bytes: 16 weights, 4 features twice.
    assert reached.kernels_ms == pytest.approx((2 * 64 * 108 + 4 * (16 + 2 * 4 * 64)) / 1e6)
    assert reached.share == pytest.approx(reached.floor_ms)
    assert found.reached(LIMITS).share is None
    assert found.reached(LIMITS, precision="int8").compute_ms == pytest.approx(operations / 4e6)
    # A type that the device was not measured in counts as float32.
    assert found.reached(LIMITS, precision="bf16").compute_ms == pytest.approx(operations / 1e6)
    with pytest.raises(UsageError, match="precision is 'fp8'; allowed: fp32, bf16, fp16, int8, int8\\+bf16"):
        found.reached(LIMITS, precision="fp8")
    with pytest.raises(UsageError, match="measured_ms is 0"):
        found.reached(LIMITS, 0)
    with pytest.raises(YolactError, match="no ceiling for float32 was measured on made"):
        found.reached(Ceilings("made", 1, {}, {}, 1e9, NOW))


@pytest.mark.parametrize(
    "kind, precision, rate",
    [
        ("float32", "bf16", 2e9),  # rounded by the engine
        ("float16", "fp32", 1e9),  # widened by it, for want of kernels
        ("int8", "fp32", 1e9),
        ("int8", "int8", 4e9),
        ("int8", None, 4e9),
    ],
)
def test_the_ceiling_is_that_of_the_precision_delivered(
    kind: str, precision: str | None, rate: float
) -> None:
    limits = Ceilings(
        "made", 1, {"float32": 1e9, "bfloat16": 2e9, "float16": 3e9, "int8": 4e9}, {}, 1e12, NOW
    )
    found = Roofline(Path("made.onnx"), GraphWork(1, (), (), Work({kind: 10**9}), ()))
    assert found.reached(limits, precision=precision).compute_ms == pytest.approx(1e12 / rate)


def test_what_an_int8_graph_left_in_float32_stays_so() -> None:
    found = Roofline(Path("made.onnx"), GraphWork(1, (), (), Work({"int8": 4 * 10**9, "float32": 10**9}), ()))
    assert found.reached(LIMITS, precision="int8").compute_ms == pytest.approx(2000)
    rates = {**LIMITS.operations, "bfloat16": 2e9}
    limits = Ceilings("made", 1, rates, {}, 1e9, NOW)
    assert found.reached(limits, precision="int8+bf16").compute_ms == pytest.approx(1500)


def test_a_type_without_a_ceiling_is_computed_in_float32() -> None:
    work = count_work(residual(), 1)
    half = Work({"float16": 10**9})
    found = Roofline(Path("half.onnx"), type(work)(1, (), (), half, ()))
    assert found.reached(LIMITS).compute_ms == pytest.approx(1000)


def test_command(exported: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "ceilings", lambda threads, fresh: LIMITS)
    path = tmp_path / "roofline.json"
    options = ["--onnx", str(exported), "--batch", "2", "--measured-ms", "1000", "--json", str(path)]
    assert cli.main(["roofline", *options]) == 0
    out = capsys.readouterr().out
    for word in ("preprocessing", "backbone", "fpn", "protonet", "head", "detection", "of the roofline"):
        assert word in out
    figures = json.loads(path.read_text())
    assert figures["batch"] == 2
    assert figures["operations"] == roofline(exported, 2).work.floor.operations
    assert figures["bytes"]["unfused"] >= figures["bytes"]["fused"] >= figures["bytes"]["floor"]
    assert figures["reached"]["measured_ms"] == 1000
    assert cli.main(["roofline", "--onnx", str(tmp_path / "none.onnx")]) == 1
    assert "none.onnx does not exist" in capsys.readouterr().err


def test_layers_in_openvino_have_the_operations_of_the_graph(network: Yolact, exported: Path) -> None:
    pytest.importorskip("openvino")
    found, _ = measure_layers(exported, LIMITS, batch=2, runs=1)
    size = network.config.model.input_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(2, 3, size, size))
    assert sum(one.layer.operations for one in found) == counter.get_total_flops()
    assert {one.layer.kind for one in found if one.layer.operations} == {"float32"}
    assert [one.lost_ms for one in found] == sorted((one.lost_ms for one in found), reverse=True)


def test_why_layers_are_below_their_ceiling() -> None:
    def conv(**changes: object) -> Layer:
        usual = {"operations": 4_000_000, "bytes": 100_000, "terms": 2304, "channels": 256, "pixels": 4096}
        return Layer("conv", "Convolution", "brgconv", "int8", "", **(usual | changes))

    layers = {
        "": (conv(), 1.0),
        "other": (conv(), 1.1),
        "short sums": (conv(terms=64), 2.0),
        "float output": (conv(terms=64, float_output=True), 2.0),
        "memory-bound": (conv(bytes=2_000_000), 3.0),
        "small map": (conv(pixels=25), 2.0),
        "few channels": (conv(channels=3), 2.0),
        "element-wise": (Layer("add", "Subgraph", "jit", "float32", "", 0, 1000), 1.0),
        "moves data": (Layer("r", "Reorder", "jit", "int8", "", 0, 1000), 1.0),
        "not in int8": (replace(conv(), kind="float32"), 8.0),
        "skipped": (conv(), 0.0),
    }
    found = {one.reason: one for one in judge(layers.values(), LIMITS)}
    assert set(found) == set(layers) - {"skipped"}
    assert set(REASONS) == set(found) - {""}
    assert found[""].floor_ms == pytest.approx(1) and found[""].bound == "compute"
    assert (found["memory-bound"].floor_ms, found["memory-bound"].bound) == (2.0, "memory")
    assert found["not in int8"].floor_ms == pytest.approx(4)  # at the ceiling of float32
    assert found["other"].share == pytest.approx(1 / 1.1) and found["other"].lost_ms == pytest.approx(0.1)
    sums = reasons(found.values())
    assert next(iter(sums)) == "not in int8" and sums["short sums"] == {"layers": 1, "ms": 2, "lost_ms": 1}


def test_a_layer_that_computes_faster_raises_the_ceiling_of_its_type() -> None:
    fast = Layer("/model/fast/Conv", "Convolution", "brgconv", "int8", "", 6_000_000, 1000)
    slow = replace(fast, name="slow", operations=3_000_000)
    short = replace(fast, name="short", operations=9_000_000)  # 0.1% of the time: not to be relied on
    moves = Layer("r", "Reorder", "jit", "float32", "", 0, 1000)
    timed = [(fast, 1.0), (slow, 1.0), (short, 0.003), (moves, 1.0), (fast, 0.0)]
    limits = raised(LIMITS, timed)
    assert limits.operations == {**LIMITS.operations, "int8": pytest.approx(6e9)}
    assert limits.by["int8"] == "layer fast"
    shares = {one.layer.name: one.share for one in judge(timed[:2], limits)}
    assert shares == pytest.approx({fast.name: 1, "slow": 0.5})
    assert raised(LIMITS, [(slow, 1.0)]) == LIMITS and raised(LIMITS, []) == LIMITS


def test_command_of_layers(exported: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(command, "ceilings", lambda threads, fresh: LIMITS)
    file = tmp_path / "layers.json"
    words = ["roofline", "--onnx", str(exported), "--threads", "1", "--layers", "3", "--json", str(file)]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "Layers by the time that they lose" in out and "Time lost, by reason" in out
    layers = json.loads(file.read_text())["layers"]
    assert len(layers) > 20 and {"name", "ms", "floor_ms", "share", "lost_ms", "reason"} <= set(layers[0])
    assert cli.main(["roofline", "--layers"]) == 2
    assert "--layers needs --onnx" in capsys.readouterr().err
