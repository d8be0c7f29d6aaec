"""The layers of a graph as OpenVINO runs them: time, work, ceiling, and why a layer is below it.

OpenVINO's graph after compilation says of each layer what it computes in, and its inputs and outputs with
their types; its profile says how long the layer took. A layer's ceiling is the longer time of its operations
at the highest rate measured for their type, and of its bytes through the memory. What is in caches may be
faster.

Probes do not always find the highest rate: a busy machine gives ceilings that are too low. So a layer that
computes faster than its ceiling raises it (`raised`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from yolact_bench.roofline.ceilings import Ceilings
from yolact_runtime.commandline import Table
from yolact_runtime.engines.openvino import read_model, shared_core
from yolact_runtime.errors import UsageError, YolactError, cause_line, counted

_KINDS = {"u8": "int8", "i8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_CONVOLUTIONS = {"Convolution", "GroupConvolution"}
_PRODUCTS = {"MatMul", "FullyConnected"}
_MOVES = {"Reorder", "Transpose", "Concat", "StridedSlice", "Split", "Reshape"}
NEAR = 0.95  # of the ceiling
# Below these a convolution spends its time on something else than multiplying.
_CHANNELS, _TERMS, _PIXELS = 16, 600, 400
# Of the time of all layers: shorter ones are too close to the steps of the profile's clock to give a rate.
_LONG = 0.01

# Why a layer is below its ceiling: the first that applies, and what it means.
REASONS = {
    "moves data": "reorders or copies values, and computes none",
    "element-wise": "no products to compute, so it waits for its bytes",
    "not in int8": "computes in another type than most of this graph",
    "few channels": f"fewer than {_CHANNELS} input channels, and an instruction multiplies more at once",
    "small map": f"fewer than {_PIXELS} pixels: the weights are read for little work",
    "memory-bound": "its bytes take longer than its operations",
    "float output": "multiplies integers, and writes float32: four times the bytes",
    "short sums": f"fewer than {_TERMS} products for each value: writing it takes as long as they do",
    "other": "none of these: the library's convolution could do better at this shape",
}


@dataclass(frozen=True)
class Layer:
    """A layer of the compiled graph.

    Attributes:
        name: Of the layer, or the first of those that became one.
        operator: Its type in OpenVINO.
        kernel: What runs it.
        kind: Type of arithmetic, such as "int8".
        shape: Channels, kernel and map of a convolution; else the sides of its output.
        operations: A multiply-add is 2.
        bytes: Inputs, weights and outputs, each once.
        terms: Products that are summed for a value of the output.
        channels: Input channels of a convolution.
        pixels: Of its output.
        float_output: It computes in integers, and writes floating-point values.
    """

    name: str
    operator: str
    kernel: str
    kind: str
    shape: str
    operations: int
    bytes: int
    terms: int = 0
    channels: int = 0
    pixels: int = 0
    float_output: bool = False


@dataclass(frozen=True)
class Measured:
    """A layer with its shortest time, and the least that the ceilings allow, in milliseconds.

    Attributes:
        bound: "compute" or "memory", the longer of the two.
        reason: Why it is slower than its ceiling; empty from `NEAR` of it on.
    """

    layer: Layer
    ms: float
    floor_ms: float
    bound: str
    reason: str

    @property
    def share(self) -> float:
        """Of the ceiling."""
        return self.floor_ms / self.ms

    @property
    def lost_ms(self) -> float:
        """Time above the ceiling's; negative for a layer that is faster."""
        return self.ms - self.floor_ms


def measure_layers(
    path: Path, limits: Ceilings, batch: int = 1, runs: int = 20, bf16: bool = False
) -> tuple[list[Measured], Ceilings]:
    """Profile a file in OpenVINO on the threads of `limits`.

    The shortest time of each layer counts, as for the ceilings.

    Args:
        path: The `.onnx` or `.xml` file.
        limits: The CPU's ceilings.
        batch: Images in a call.
        runs: Calls.
        bf16: Compute what is float32 in bfloat16.

    Returns:
        The layers, most time lost first, and the ceilings, see `raised`.

    Raises:
        UsageError: the file is for another batch size.
        YolactError: OpenVINO is missing, or cannot run the file.
    """
    model, meta = read_model(path)
    if not meta.min_batch <= batch <= meta.max_batch:
        raise UsageError(f"--batch is {batch}; {path} takes {meta.min_batch} to {meta.max_batch} images")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": limits.threads,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERF_COUNT": True,
    }
    height, width = meta.input_shape
    image = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3)).astype(meta.input_dtype)
    try:
        model.reshape([batch, height, width, 3])
        compiled = shared_core().compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()
        times: dict[str, float] = defaultdict(lambda: math.inf)
        for _ in range(runs):
            request.infer([image])
            for one in request.get_profiling_info():
                times[one.node_name] = min(times[one.node_name], 1000 * one.real_time.total_seconds())
        nodes = compiled.get_runtime_model().get_ordered_ops()
    except Exception as error:  # OpenVINO raises RuntimeErrors of many lines
        raise YolactError(f"{path}: OpenVINO cannot run it: {cause_line(error)}") from error
    timed = [(layer_of(node), times.get(node.get_friendly_name(), 0.0)) for node in nodes]
    limits = raised(limits, timed)
    return judge(timed, limits), limits


def raised(limits: Ceilings, timed: Sequence[tuple[Layer, float]]) -> Ceilings:
    """The ceilings, or the rates of layers that compute faster.

    Args:
        limits: The measured ceilings.
        timed: Layers and their milliseconds.
    """
    operations, by = dict(limits.operations), dict(limits.by)
    long = _LONG * sum(ms for _, ms in timed)
    for layer, ms in timed:
        if layer.operations and ms > 0 and ms >= long:
            rate = 1000 * layer.operations / ms
            if rate > operations.get(layer.kind, math.inf):
                operations[layer.kind], by[layer.kind] = rate, f"layer {_short(layer.name)}"
    return replace(limits, operations=operations, by=by)


def judge(layers: Iterable[tuple[Layer, float]], limits: Ceilings) -> list[Measured]:
    """The layers that took any time, with the least that the ceilings allow; most time lost first."""
    timed = [(layer, ms) for layer, ms in layers if ms > 0]
    kinds: dict[str, int] = defaultdict(int)
    for layer, _ in timed:
        kinds[layer.kind] += layer.operations
    usual = max(kinds, key=lambda kind: kinds[kind], default="float32")
    found = []
    for layer, ms in timed:
        compute = 1000 * layer.operations / limits.rate(layer.kind) if layer.operations else 0.0
        memory = 1000 * layer.bytes / limits.bandwidth
        floor, bound = max((compute, "compute"), (memory, "memory"))
        reason = "" if floor >= NEAR * ms else _reason(layer, bound, usual)
        found.append(Measured(layer, ms, floor, bound, reason))
    return sorted(found, key=lambda one: -one.lost_ms)


def _reason(layer: Layer, bound: str, usual: str) -> str:
    """Why a layer is below its ceiling."""
    if layer.operator in _MOVES:
        return "moves data"
    if not layer.operations:
        return "element-wise"
    if layer.kind != usual and usual == "int8":
        return "not in int8"
    if 0 < layer.channels < _CHANNELS:
        return "few channels"
    if 0 < layer.pixels < _PIXELS:
        return "small map"
    if bound == "memory":
        return "memory-bound"
    if layer.float_output:
        return "float output"
    if 0 < layer.terms < _TERMS:
        return "short sums"
    return "other"


def layer_of(node: Any) -> Layer:
    """The layer of a node of OpenVINO's runtime graph."""
    info = node.get_rt_info()
    operator, kernel, precision = (
        info[name].astype(str) for name in ("layerType", "primitiveType", "runtimePrecision")
    )
    name = info["originalLayersNames"].astype(str).partition(",")[0] or node.get_friendly_name()
    inputs, outputs = ([_sides(port) for port in ports] for ports in (node.inputs(), node.outputs()))
    size = sum(_bytes(port) for port in (*node.inputs(), *node.outputs()))
    kind = _KINDS.get(precision, precision)
    layer = {"name": name, "operator": operator, "kernel": kernel, "kind": kind, "bytes": size}
    values = math.prod(outputs[0]) if outputs else 0
    if operator in _CONVOLUTIONS and len(inputs) > 1 and len(inputs[1]) >= 3:
        # The weights are (outputs, inputs of a group, kernel); with groups, these come first.
        weights = inputs[1][1:] if operator == "GroupConvolution" else inputs[1]
        terms, pixels = math.prod(weights[1:]), math.prod(outputs[0][2:])
        side = "x".join(map(str, weights[2:]))
        shape = f"{inputs[0][1]}>{outputs[0][1]} {side} {'x'.join(map(str, outputs[0][2:]))}"
        written = _KINDS.get(node.outputs()[0].get_element_type().get_type_name(), "")
        layer |= {"channels": weights[1], "pixels": pixels * outputs[0][0], "shape": shape}
        layer |= {"terms": terms, "float_output": kind == "int8" and written != "int8"}
    else:
        terms = inputs[0][-1] if operator in _PRODUCTS and inputs and inputs[0] else 0
        layer |= {"terms": terms, "shape": "x".join(map(str, outputs[0])) if outputs else ""}
    return Layer(**layer, operations=2 * values * terms)


def _sides(port: Any) -> list[int]:
    return [int(side) for side in port.get_shape()] if port.get_partial_shape().is_static else []


def _bytes(port: Any) -> int:
    return math.prod(_sides(port)) * int(port.get_element_type().size)


def layers_table(found: Sequence[Measured], most: int) -> Table:
    """The `most` layers that lose most time."""
    rows = [
        [
            *(_short(one.layer.name), one.layer.kind, one.layer.shape, f"{one.ms:.2f}"),
            f"{one.layer.operations / 1e9:.2f}" if one.layer.operations else "-",
            *(f"{one.layer.bytes / 1e6:.1f}", f"{one.floor_ms:.2f}", one.bound, f"{one.share:.0%}"),
            *(f"{one.lost_ms:.2f}", one.reason or "-"),
        ]
        for one in found[:most]
    ]
    columns = ("layer", "in", "what", "ms", "Gop", "MB", "least", "by", "share", "lost", "because")
    note = f"{counted(len(found), 'layer')}; ms: the shortest time of each. MB: inputs, weights and outputs."
    return Table("Layers by the time that they lose", columns, rows, note)


def _short(name: str) -> str:
    """The name of a layer without what all of them have."""
    name = name.removeprefix("/model/").removesuffix("/WithoutBiases").removesuffix("/Conv")
    return name.replace("backbone/layers.", "backbone/").replace("/layers.", "/")


def reasons(found: Iterable[Measured]) -> dict[str, Mapping[str, float]]:
    """Layers, milliseconds, and lost milliseconds for each reason; "" for those near their ceiling."""
    groups: dict[str, list[Measured]] = defaultdict(list)
    for one in found:
        groups[one.reason].append(one)
    sums = {
        reason: {
            "layers": len(some),
            "ms": sum(one.ms for one in some),
            "lost_ms": sum(one.lost_ms for one in some),
        }
        for reason, some in groups.items()
    }
    return dict(sorted(sums.items(), key=lambda pair: -pair[1]["lost_ms"]))


def reasons_table(found: Sequence[Measured]) -> Table:
    """Lost time by reason, and the share of all layers together."""
    near = f"reaches {NEAR:.0%} of its ceiling"
    rows = [
        [
            *(reason or "near its ceiling", REASONS.get(reason, near)),
            *(f"{one['layers']}", f"{one['ms']:.2f}", f"{one['lost_ms']:.2f}"),
        ]
        for reason, one in reasons(found).items()
    ]
    ms, floor = sum(one.ms for one in found), sum(one.floor_ms for one in found)
    rows.append(["all", "", str(len(found)), f"{ms:.2f}", f"{ms - floor:.2f}"])
    note = f"All layers together reach {floor / ms:.1%} of their ceilings." if ms else ""
    columns = ("because", "which means", "layers", "ms", "lost ms")
    return Table("Time lost, by reason", columns, rows, note, text_columns=2)


def to_json(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """Everything about each layer."""
    return [
        {**asdict(one.layer), **{key: value for key, value in asdict(one).items() if key != "layer"}}
        | {"share": one.share, "lost_ms": one.lost_ms}
        for one in found
    ]
