"""The child process that counts: its result, and how it ends with hostile files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from yolact_bench.roofline import count
from yolact_bench.roofline.count import count_file
from yolact_bench.roofline.work import count_work
from yolact_export.onnx_graph import read_graph
from yolact_runtime.errors import UsageError, YolactError


def write(path: Path, *nodes: onnx.NodeProto) -> Path:
    """A file with a convolution, a constant "c0" of 3, and more nodes."""
    x = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 8, 8])
    weights = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    three = numpy_helper.from_array(np.array([3], np.int64), "c0")
    every = [helper.make_node("Conv", ["images", "w"], ["y"]), *nodes]
    graph = helper.make_graph(every, "g", [x], [y], [weights, three])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_the_result_is_that_of_this_process(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    assert count_file(path, 2) == count_work(read_graph(path), 2)
    with pytest.raises(UsageError, match="batch is 0; it must be 1 or more, and at most the 1,024 allowed"):
        count_file(path, 0)
    with pytest.raises(YolactError, match="does not exist"):
        count_file(tmp_path / "none.onnx", 1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
@pytest.mark.parametrize("operator", ["Mul", "Concat"])
def test_values_that_grow_without_end(operator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"axis": 0} if operator == "Concat" else {}
    nodes = [helper.make_node(operator, [f"c{i}"] * 2, [f"c{i + 1}"], **options) for i in range(45)]
    path = write(tmp_path / "m.onnx", *nodes)
    monkeypatch.setenv("YOLACT_MAX_ENGINE_SECONDS", "6")
    with pytest.raises(
        YolactError, match=r"inferring its shapes (takes longer|needs more|crashes)|bad_alloc"
    ):
        count_file(path, 1)


@pytest.mark.parametrize(
    ("code", "message"),
    [("import os; os.kill(os.getpid(), 11)", r"crashes \(exit code -11\)"), ("print('{')", "crashes")],
)
def test_crashes_are_one_line(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(count, "module_command", lambda *words: [sys.executable, "-c", code])
    with pytest.raises(YolactError, match=message):
        count_file(write(tmp_path / "m.onnx"), 1)


@pytest.mark.parametrize(
    ("sizes", "kind"), [([4, -3, 1, 1], 1), ([4, 3, 1, 1], 99), ([4, 3, 1, 1], 0)], ids=str
)
def test_tensors_that_cannot_be(sizes: list[int], kind: int, tmp_path: Path) -> None:
    model = onnx.load(write(tmp_path / "m.onnx"))
    tensor = model.graph.initializer[1]
    tensor.dims[:], tensor.data_type = sizes, kind
    with pytest.raises(YolactError, match=r"has a tensor of the sizes|cannot be inferred"):
        count_work(model, 1)
