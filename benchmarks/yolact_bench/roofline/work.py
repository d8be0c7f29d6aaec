"""The work of an ONNX graph: operations and bytes, node by node and for fused kernels.

*Operations* are those of convolutions and matrix products, a multiply-add counting as 2 and a bias as
none. Everything else is limited by the bytes it moves.

*Bytes* are counted three ways, each at least as much as the next:

    unfused   every node reads its inputs and writes its outputs
    fused     element-wise work, and what only moves elements, is done by the kernel before it
    floor     the graph's inputs and outputs, as if everything between stayed in caches

Weights are read once in each. Nodes that only change a shape move nothing; quantised tensors are moved as
integers, and their DequantizeLinear is part of the reader. A node that picks elements, such as Gather,
reads as much as it picks.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import helper

from yolact_bench.roofline.shapes import at_batch, is_sized
from yolact_export.precision.compute import layer_compute
from yolact_export.precision.layers import COMPUTE, DETECTION, PREPROCESSING, layer_group
from yolact_runtime.errors import YolactError

PARTS = (PREPROCESSING, "backbone", "fpn", "protonet", "head", "mask_iou", DETECTION)
# Their output is their input under another shape or type.
_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "DequantizeLinear"}
_READ_NOTHING = {"Shape", "Size", "Constant"}
_PICK = {"Slice", "Gather", "GatherElements", "GatherND"}
# Done on values that are in registers, by the kernel that computed them.
_FUSED = {
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Exp", "Neg", "Cast", "QuantizeLinear"),
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "BatchNormalization", "Transpose", "Slice"),
    *("And", "Not", "Where", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"),
}
# Its inputs are written in place by the kernels that compute them.
_IN_PLACE = "Concat"


@dataclass(frozen=True)
class Work:
    """The work of one kernel, a part of the network, or all of it.

    Attributes:
        operations: By type of arithmetic: "float32", "float16", "bfloat16", "int8".
        weights: Bytes of them, each counted at its first use.
        read: Bytes of activations.
        written: Bytes of activations.
    """

    operations: Mapping[str, int] = field(default_factory=dict)
    weights: int = 0
    read: int = 0
    written: int = 0

    @property
    def bytes(self) -> int:
        """All bytes that are moved."""
        return self.weights + self.read + self.written

    @staticmethod
    def sum(works: Iterable[Work]) -> Work:
        """The sum of several."""
        works, operations = list(works), Counter[str]()
        for work in works:
            operations.update(work.operations)
        sums = (sum(getattr(work, name) for work in works) for name in ("weights", "read", "written"))
        return Work(dict(operations), *sums)


@dataclass(frozen=True)
class NodeWork:
    """The work of a node, or of the kernel that fuses a node with others.

    Attributes:
        name: Of the first node.
        operator: Of the first node.
        part: Of the network, one of `PARTS`.
        work: Of all of them.
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
        unfused: Node by node, without those that move nothing.
        fused: Kernel by kernel.
        floor: With the graph's inputs and outputs as the only activations.
        unknown: Nodes with unknown shapes; they are not counted.
    """

    batch: int
    unfused: tuple[NodeWork, ...]
    fused: tuple[NodeWork, ...]
    floor: Work
    unknown: tuple[str, ...]


def count_work(model: onnx.ModelProto, batch: int) -> GraphWork:
    """Count the work of a graph.

    Args:
        model: Of ours or any other; the parts of the network are found by the names that yolact-export gives.
        batch: Images in a call.

    Raises:
        UsageError: the graph is for another batch size.
        YolactError: it has no convolution or matrix product with known shapes.
    """
    return _Counter(at_batch(model, batch), {tensor.name for tensor in model.graph.initializer}).count(batch)


class _Counter:
    """Counts the work of a graph whose tensors are described; `weights` are the names of its weights."""

    def __init__(self, model: onnx.ModelProto, weights: Collection[str]) -> None:
        self.graph, self.weights = model.graph, weights
        described = [
            *((value.name, value.type) for value in (*model.graph.input, *model.graph.value_info)),
            *((value.name, value.type) for value in model.graph.output),
            *(
                (one.name, helper.make_tensor_type_proto(one.data_type, one.dims))
                for one in model.graph.initializer
            ),
        ]
        self.sizes = {name: _bytes(kind) for name, kind in described if is_sized(kind)}
        # The tensor in memory behind each one that is only another view of it.
        self.base: dict[str, str] = {}
        for node in self.graph.node:
            if node.op_type in _VIEWS:
                self.base[node.output[0]] = self.base.get(node.input[0], node.input[0])
        batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        layers = iter(layer_compute(model))
        self.operations = {
            index: {layer.kind: 2 * layer.macs * batch}
            for index, node in enumerate(model.graph.node)
            if node.op_type in COMPUTE and (layer := next(layers))
        }

    def count(self, batch: int) -> GraphWork:
        """The work at the batch size of the graph."""
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
        entering = [value.name for value in self.graph.input if value.name not in self.weights]
        read, written = (
            sum(self.sizes[name] for name in names)
            for names in (entering, [value.name for value in self.graph.output])
        )
        floor = Work(total.operations, total.weights, read, written)
        return GraphWork(batch, unfused, fused, floor, tuple(unknown))

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
            computed = {name for node in nodes for name in node.output if name}
            if in_place and nodes[0].op_type == _IN_PLACE:
                continue
            weights = 0
            read: dict[str, int] = defaultdict(int)
            for index in group:
                for name, amount in self._inputs(index).items():
                    if name in self.weights:
                        weights += 0 if name in seen else self.sizes[name]
                        seen.add(name)
                    elif name not in computed:
                        read[name] = min(self.sizes[name], read[name] + amount)
            written = sum(
                self.sizes[name] for name in computed if name in leaving or readers[name] - {number}
            )
            operations = Work.sum(Work(self.operations.get(index, {})) for index in group).operations
            work = Work(operations, weights, sum(read.values()), written)
            first = nodes[0]
            part = layer_group(first).partition(".")[0]
            kernels.append(NodeWork(first.name or first.output[0], first.op_type, part, work))
        return tuple(kernels)

    def _fuse(self, counted: Sequence[int]) -> list[list[int]]:
        """Group nodes with the one whose output they change; the groups are in the graph's order."""
        maker = {name: index for index in counted for name in self.graph.node[index].output if name}
        first: dict[int, int] = {}
        groups: dict[int, list[int]] = defaultdict(list)
        for index in counted:
            makers = [maker[name] for name in self._inputs(index) if name in maker]
            latest = max(makers, default=index)
            fused = self.graph.node[index].op_type in _FUSED and self.graph.node[latest].op_type != _IN_PLACE
            first[index] = first.get(latest, index) if fused else index
            groups[first[index]].append(index)
        return list(groups.values())

    def _inputs(self, index: int) -> dict[str, int]:
        """The tensors in memory that a node reads, and how many bytes of each."""
        node = self.graph.node[index]
        amounts = {}
        for position, name in enumerate(node.input):
            if name:
                stored = self.base.get(name, name)
                picked = node.op_type in _PICK and position == 0
                amounts[stored] = min(self.sizes[stored], self.sizes[node.output[0] if picked else stored])
        return amounts


def _bytes(kind: onnx.TypeProto) -> int:
    tensor = kind.tensor_type
    item = int(helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize)
    return math.prod(size.dim_value for size in tensor.shape.dim) * item
