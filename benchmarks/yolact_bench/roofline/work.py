"""What an ONNX graph has to do: operations and bytes, node by node and as fused kernels would.

*Operations* are those of convolutions and matrix products, a multiplication and an addition counting as 2; a
bias counts as none. Everything else is limited by the bytes it moves.

*Bytes* are counted three ways, each at least as much as the next:

    unfused   every node reads its inputs and writes its outputs
    fused     what is computed element by element, or only moves elements, is done by the kernel before it
    floor     the graph's inputs and outputs, as if everything between stayed in caches

Weights are read once in each. Nodes that change a shape only move nothing; quantised tensors are moved as
integers, and their DequantizeLinear is part of who reads them. A node that picks elements, such as Gather,
reads as much as it picks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import helper

from yolact_bench.roofline.shapes import at_batch
from yolact_export.precision.compute import layer_compute
from yolact_export.precision.layers import COMPUTE, DETECTION, PREPROCESSING, layer_group
from yolact_runtime.errors import YolactError

PARTS = (PREPROCESSING, "backbone", "fpn", "protonet", "head", "mask_iou", DETECTION)
# Their output is their input under another shape or type.
_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "DequantizeLinear"}
_READ_NOTHING = {"Shape", "Size", "Constant"}
_PICK = {"Slice", "Gather", "GatherElements", "GatherND"}
# Done on values that are in registers, by the kernel that made them.
_FUSED = {
    *(
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Clip",
        "Sigmoid",
        "Tanh",
        "Exp",
        "Neg",
        "Cast",
        "Where",
        "QuantizeLinear",
    ),
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "And", "Not", "Greater", "Less", "GreaterOrEqual"),
    *("LessOrEqual", "Equal", "BatchNormalization", "Transpose", "Slice"),
}
# Its inputs are written to their places by who makes them.
_IN_PLACE = "Concat"


@dataclass(frozen=True)
class Work:
    """What one kernel, a part of the network, or all of it has to do.

    Attributes:
        operations: By type of arithmetic: "float32", "float16", "bfloat16", "int8".
        weights: Bytes of them, each counted where it is used first.
        read: Bytes of activations.
        written: Bytes of activations.
    """

    operations: Mapping[str, int] = field(default_factory=dict)
    weights: int = 0
    read: int = 0
    written: int = 0

    @property
    def bytes(self) -> int:
        """All that is moved."""
        return self.weights + self.read + self.written

    @staticmethod
    def sum(works: Iterable[Work]) -> Work:
        """All of them together."""
        operations: dict[str, int] = defaultdict(int)
        weights = read = written = 0
        for work in works:
            for kind, count in work.operations.items():
                operations[kind] += count
            weights += work.weights
            read += work.read
            written += work.written
        return Work(dict(operations), weights, read, written)


@dataclass(frozen=True)
class NodeWork:
    """The work of a node, or of the kernel that a node and those fused with it would be.

    Attributes:
        name: Of the first node.
        operator: Of the first node.
        part: Of the network, one of `PARTS`.
        work: What it has to do.
    """

    name: str
    operator: str
    part: str
    work: Work


@dataclass(frozen=True)
class GraphWork:
    """The work of a graph at one batch size.

    Attributes:
        batch: Images in a call.
        unfused: Node by node, those that move nothing left out.
        fused: Kernel by kernel.
        floor: With the graph's inputs and outputs as the only activations.
        unknown: Nodes whose shapes are not known; they are not counted.
    """

    batch: int
    unfused: tuple[NodeWork, ...]
    fused: tuple[NodeWork, ...]
    floor: Work
    unknown: tuple[str, ...]


def count_work(model: onnx.ModelProto, batch: int) -> GraphWork:
    """Count the work of a graph.

    Args:
        model: Of ours or any other; parts of the network are told by the names that yolact-export gives.
        batch: Images in a call.

    Raises:
        UsageError: the graph is for another batch.
        YolactError: it has no convolution or matrix product whose shapes are known.
    """
    return _Counter(at_batch(model, batch), {tensor.name for tensor in model.graph.initializer}).count(batch)


class _Counter:
    def __init__(self, model: onnx.ModelProto, weights: Collection[str]) -> None:
        self.graph = model.graph
        values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        self.sizes = {value.name: size for value in values if (size := _bytes(value)) is not None}
        for tensor in model.graph.initializer:
            item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            self.sizes[tensor.name] = math.prod(tensor.dims) * item
        self.weights = weights
        self.base = self._bases()
        layers = iter(layer_compute(model))
        self.operations = {
            index: {layer.kind: 2 * layer.macs * model.graph.input[0].type.tensor_type.shape.dim[0].dim_value}
            for index, node in enumerate(model.graph.node)
            if node.op_type in COMPUTE and (layer := next(layers))
        }

    def count(self, batch: int) -> GraphWork:
        counted, unknown = [], []
        for index, node in enumerate(self.graph.node):
            if node.op_type in _VIEWS or node.op_type in _READ_NOTHING:
                continue
            if all(name in self.sizes for name in (*node.input, *node.output) if name):
                counted.append(index)
            else:
                unknown.append(node.name or node.output[0])
        if not any(sum(self.operations.get(index, {}).values()) for index in counted):
            raise YolactError("the graph holds no convolution or matrix product with known shapes")
        unfused = self._kernels([[index] for index in counted])
        fused = self._kernels(self._fuse(counted), in_place=True)
        total = Work.sum(kernel.work for kernel in unfused)
        real = [value.name for value in self.graph.input if value.name not in self.weights]
        leaving = [value.name for value in self.graph.output]
        floor = Work(total.operations, total.weights, self._total(real), self._total(leaving))
        return GraphWork(batch, unfused, fused, floor, tuple(unknown))

    def _bases(self) -> dict[str, str]:
        """The tensor in memory behind each one that is only another view of it."""
        base: dict[str, str] = {}
        for node in self.graph.node:
            if node.op_type in _VIEWS:
                base[node.output[0]] = base.get(node.input[0], node.input[0])
        return base

    def _kernels(self, groups: Sequence[Sequence[int]], in_place: bool = False) -> tuple[NodeWork, ...]:
        """The work of groups of nodes, each a kernel; each weight is counted in the first that reads it."""
        readers: dict[str, set[int]] = defaultdict(set)
        for number, group in enumerate(groups):
            for index in group:
                for name in self._inputs(index):
                    readers[name].add(number)
        leaving = {self.base.get(value.name, value.name) for value in self.graph.output}
        seen: set[str] = set()
        kernels = []
        for number, group in enumerate(groups):
            nodes = [self.graph.node[index] for index in group]
            made = {name for node in nodes for name in node.output if name}
            if in_place and nodes[0].op_type == _IN_PLACE:
                continue
            weights = 0
            read: dict[str, int] = defaultdict(int)
            for index in group:
                for name, amount in self._inputs(index).items():
                    if name in self.weights:
                        weights += 0 if name in seen else self.sizes[name]
                        seen.add(name)
                    elif name not in made:
                        read[name] = min(self.sizes[name], read[name] + amount)
            kept = [name for name in made if name in leaving or readers[name] - {number}]
            operations = [Work(self.operations[index]) for index in group if index in self.operations]
            work = Work(Work.sum(operations).operations, weights, sum(read.values()), self._total(kept))
            first = nodes[0]
            kernels.append(NodeWork(first.name or first.output[0], first.op_type, _part(first), work))
        return tuple(kernels)

    def _fuse(self, counted: Sequence[int]) -> list[list[int]]:
        """Group nodes with the one that makes what they change; the groups are in the graph's order."""
        maker = {name: index for index in counted for name in self.graph.node[index].output if name}
        group: dict[int, int] = {}
        for index in counted:
            node = self.graph.node[index]
            makers = [maker[name] for name in self._inputs(index) if name in maker]
            latest = max(makers, default=None)
            if node.op_type in _FUSED and latest is not None and self.graph.node[latest].op_type != _IN_PLACE:
                group[index] = group[latest]
            else:
                group[index] = index
        members: dict[int, list[int]] = defaultdict(list)
        for index, first in group.items():
            members[first].append(index)
        return list(members.values())

    def _inputs(self, index: int) -> dict[str, int]:
        """What a node reads: tensors in memory, and how many bytes of each."""
        node = self.graph.node[index]
        amounts = {}
        for position, name in enumerate(node.input):
            if name:
                stored = self.base.get(name, name)
                picked = node.op_type in _PICK and position == 0
                amounts[stored] = self.sizes[node.output[0]] if picked else self.sizes[stored]
                amounts[stored] = min(amounts[stored], self.sizes[stored])
        return amounts

    def _total(self, names: Iterable[str]) -> int:
        return sum(self.sizes[name] for name in names)


def _part(node: onnx.NodeProto) -> str:
    return layer_group(node).partition(".")[0]


def _bytes(value: onnx.ValueInfoProto) -> int | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(size.HasField("dim_value") for size in kind.shape.dim):
        return None
    item = int(helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)
    return math.prod(size.dim_value for size in kind.shape.dim) * item
