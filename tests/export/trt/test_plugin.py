"""The kernels as plugins: for every batch, TensorRT gets the plan that the runtime launches.

The plugin API is a fake with the real one's signatures and order of arguments.
"""

from __future__ import annotations

import inspect
import sys
import typing
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_onnx import NATIVE, RUNTIME

from yolact_export.trt import plugin
from yolact_runtime.cuda.compile import Module
from yolact_runtime.cuda.gpu import Gpu
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.plan import Buffer, Launch, Plan
from yolact_runtime.errors import YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.priors import make_priors

DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32}
PRIORS, CLASSES, COEFFICIENTS = 4, len(NATIVE.class_names), 2


class Description(SimpleNamespace):
    """A tensor's description: `shape_expr` and `dtype`."""


class Parameters(SimpleNamespace):
    """Launch parameters."""


class Scalars(list):
    """Values passed to a kernel between its inputs and its outputs."""

    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class Api(ModuleType):
    """`tensorrt.plugin`, for a batch that is known."""

    TensorDesc, KernelLaunchParams, SymIntExprs = Description, Parameters, Scalars

    def __init__(self) -> None:
        super().__init__("tensorrt.plugin")
        self.described: dict[str, Any] = {}
        self.op = SimpleNamespace(yolact=SimpleNamespace())

    def from_shape_expr(self, shape: tuple[int, ...], dtype: str) -> Description:
        return Description(shape_expr=shape, dtype=dtype)

    def SymInt32(self, value: int) -> int:  # noqa: N802
        assert type(value) is int
        assert -(2**31) <= value < 2**31
        return value

    def register(self, name: str) -> Any:
        def decorate(function: Any) -> Any:
            assert name not in self.described
            signature = inspect.signature(function)
            assert all(item.annotation is Description for item in signature.parameters.values())
            assert set(typing.get_args(signature.return_annotation)) == {Description}
            self.described[name] = function
            return function

        return decorate

    def aot_impl(self, name: str) -> Any:
        def decorate(function: Any) -> Any:
            describe = self.described[name]
            inputs = list(inspect.signature(describe).parameters)
            assert list(inspect.signature(function).parameters) == [*inputs, "outputs", "tactic"]
            outputs = typing.get_args(inspect.signature(describe).return_annotation)

            def make(*tensors: Any) -> Any:
                assert len(tensors) == len(inputs)
                return SimpleNamespace(
                    tensors=tensors, describe=describe, implement=function, outputs=len(outputs)
                )

            setattr(self.op.yolact, name.partition("::")[2], make)
            return function

        return decorate


class Tensor:
    def __init__(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class Network:
    """Heads for `batch` images; plugins are described and implemented as they are added."""

    def __init__(self, batch: int, dtype: str = "FLOAT") -> None:
        shapes = {"loc": 4, "logits": CLASSES + 1, "coefficients": COEFFICIENTS}
        self.outputs = [Tensor(name, (batch, PRIORS, last), dtype) for name, last in shapes.items()]
        self.outputs.append(Tensor("prototypes", (batch, 8, 8, COEFFICIENTS), dtype))
        self.launches: list[tuple] = []
        self.constant: np.ndarray | None = None

    num_outputs = property(lambda self: len(self.outputs))

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def unmark_output(self, tensor: Tensor) -> None:
        self.outputs.remove(tensor)

    def mark_output(self, tensor: Tensor) -> None:
        self.outputs.append(tensor)

    def add_constant(self, shape: tuple[int, ...], values: np.ndarray) -> Any:
        assert values.dtype == np.float32
        assert values.shape == shape
        self.constant = values
        return SimpleNamespace(get_output=lambda _: Tensor("priors", shape, "FLOAT"))

    def add_plugin(self, made: Any, aot: bool) -> Any:
        assert aot
        inputs = [Description(shape_expr=tensor.shape, dtype=tensor.dtype) for tensor in made.tensors]
        described = made.describe(*inputs)
        assert len(described) == made.outputs
        entry, ptx, parameters, scalars = made.implement(*inputs, described, 0)
        assert ptx == "ptx"
        outputs = [Tensor("", item.shape_expr, item.dtype) for item in described]
        self.launches.append((entry, vars(parameters), list(made.tensors), list(scalars), outputs))
        return SimpleNamespace(get_output=lambda index: outputs[index])


def types() -> SimpleNamespace:
    return SimpleNamespace(FLOAT="FLOAT", HALF="HALF", INT32="INT32")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """TensorRT with a fake plugin module, and a compiler that compiles nothing."""
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", Api())

    def compile_kernels(
        source: str, names: tuple[str, ...], capability: tuple, ptx: bool, library: object
    ) -> Module:
        assert ptx
        assert capability == (8, 6)
        return Module(b"ptx", {name: f"mangled {name}" for name in names}, "", capability, (13, 0))

    monkeypatch.setattr(plugin, "compile_kernels", compile_kernels)
    monkeypatch.setattr(plugin, "current_gpu", lambda: None)
    return SimpleNamespace(__name__="tensorrt", __version__="11.4.0", DataType=types())


def plan_of(metadata: Metadata, batch: int, dtype: str) -> Plan:
    heads = dict.fromkeys(("loc_dtype", "logits_dtype", "coefficients_dtype"), DTYPES[dtype])
    return detection_plan(
        batch, PRIORS, CLASSES, COEFFICIENTS, score_threshold=metadata.score_threshold,
        iou_threshold=metadata.iou_threshold, top_k=metadata.nms_top_k, limit=metadata.max_detections,
        **heads,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["FLOAT", "HALF"])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_plugins_are_the_plan(trt: SimpleNamespace, batch: int, dtype: str) -> None:
    network = Network(batch, dtype)
    plugin.add_detection(trt, network, RUNTIME, "8.6")
    plan = plan_of(RUNTIME, batch, dtype)
    sizes = {buffer.name: buffer for buffer in plan.buffers}
    names: dict[int, str] = {}
    assert len(network.launches) == len(plan.launches)
    for (entry, parameters, inputs, scalars, outputs), launch in zip(
        network.launches, plan.launches, strict=True
    ):
        assert entry == f"mangled {launch.kernel}"
        assert tuple(parameters[f"grid_{axis}"] for axis in "xyz") == launch.grid
        assert tuple(parameters[f"block_{axis}"] for axis in "xyz") == launch.block
        assert parameters["shared_mem"] == launch.shared_bytes
        passed = [*inputs, *scalars, *outputs]
        assert len(passed) == len(launch.arguments)
        for given, wanted in zip(passed, launch.arguments, strict=True):
            if isinstance(wanted, str):
                # The same buffer is the same tensor in every launch, of the plan's shape and width.
                assert names.setdefault(id(given), wanted) == wanted
                assert tuple(given.shape) == sizes[wanted].shape
                assert np.dtype(DTYPES[given.dtype]).itemsize == sizes[wanted].dtype.itemsize
            else:
                assert np.int32(given).tobytes() == wanted.tobytes()


def test_the_engine_returns_detections(trt: SimpleNamespace) -> None:
    network = Network(2)
    plugin.add_detection(trt, network, RUNTIME, "8.6")
    assert sorted(tensor.name for tensor in network.outputs) == [
        "boxes", "classes", "coefficients", "count", "prototypes", "scores",
    ]  # fmt: skip
    k = RUNTIME.max_detections
    shapes = {tensor.name: tensor.shape for tensor in network.outputs}
    assert (shapes["boxes"], shapes["coefficients"]) == ((2, k, 4), (2, k, COEFFICIENTS))
    spec = RUNTIME.priors
    assert spec is not None
    priors = make_priors(spec.levels, spec.scales, spec.aspect_ratios, RUNTIME.input_size, spec.square)
    np.testing.assert_array_equal(network.constant, priors)


@pytest.mark.parametrize(("cuda", "chosen"), [("12.8", (12, 8)), ("13.0", (13, 0)), (None, None)])
def test_the_compiler_is_no_newer_than_the_driver(
    trt: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, cuda: str | None, chosen: tuple[int, int] | None
) -> None:
    used = []
    compile_kernels = plugin.compile_kernels
    monkeypatch.setattr(
        plugin, "compile_kernels", lambda *a, **b: used.append(b["library"]) or compile_kernels(*a, **b)
    )
    monkeypatch.setattr(plugin, "current_gpu", lambda: cuda and Gpu("GPU", "8.6", cuda))
    monkeypatch.setattr(plugin.nvrtc, "choose", lambda number, *newest: newest)
    plugin.add_detection(trt, Network(1), RUNTIME, "8.6")
    assert set(used) == {chosen}


def test_registering_twice_in_a_process(trt: SimpleNamespace) -> None:
    for _ in range(2):
        plugin.add_detection(trt, Network(1), RUNTIME, "8.6")


def test_a_version_without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", None)
    old = SimpleNamespace(__name__="tensorrt", __version__="8.6.1", DataType=types())
    with pytest.raises(YolactError, match=r"tensorrt 8\.6\.1 has no ahead-of-time plugins.*--detect runtime"):
        plugin.add_detection(old, Network(1), RUNTIME, "8.6")


def test_graphs_without_heads(trt: SimpleNamespace) -> None:
    network = Network(1)
    network.outputs.pop(0)
    with pytest.raises(YolactError, match="outputs are raw heads"):
        plugin.add_detection(trt, network, RUNTIME, "8.6")
    network = Network(1)
    network.outputs[0].shape = (1, 5, 4)
    with pytest.raises(YolactError, match="the metadata has 4 priors"):
        plugin.add_detection(trt, network, RUNTIME, "8.6")


def plan(batch: int, arguments: tuple, side: int = 32) -> Plan:
    launch = Launch("a.cu", "k", (batch, 1, 1), (side, 1, 1), 0, arguments)
    a, b = (Buffer(name, (batch, 3), np.dtype(np.float32)) for name in "ab")
    return Plan((a,), (b,), (), (launch,))


@pytest.mark.parametrize(
    ("plan_for", "words"),
    [
        (lambda n: plan(n, ("b", np.int32(1), "a")), "order"),
        (lambda n: plan(n, (np.int32(1), "a", "b")), "order"),
        (lambda n: plan(n, ("a", np.int32(n), "b")), "depend on the batch"),
        (lambda n: plan(n, ("a", "b"), 32 * n), "depend on the batch"),
        (lambda n: plan(n + 1, ("a", "b")), "neither constant nor proportional"),
    ],
)
def test_plans_that_cannot_be_plugins(trt: SimpleNamespace, plan_for: Any, words: str) -> None:
    tensors = {"a": Tensor("a", (1, 3), "FLOAT")}
    with pytest.raises(ValueError, match=words):
        plugin.add_plan(trt, sys.modules["tensorrt.plugin"], Network(1), plan_for, tensors, "8.6")
