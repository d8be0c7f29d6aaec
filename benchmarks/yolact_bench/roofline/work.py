"""The work of an ONNX graph: operations and bytes, node by node and for fused kernels.

Operations are those of convolutions and matrix products, a multiply-add counts as 2. Bytes are counted three
ways, with all weights once in each:

    unfused   every node reads its inputs and writes its outputs
    fused     element-wise work, and what only moves elements, is done by the kernel before it
    floor     the graph's inputs and outputs, as if everything between stayed in caches

Nodes that only change a shape move nothing; quantised tensors are moved as integers, and their
DequantizeLinear is part of the reader. A node that picks elements, such as Gather, reads as much as it picks.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import helper
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from yolact_export.precision.compute import layer_compute
from yolact_export.precision.layers import COMPUTE, DETECTION, PREPROCESSING, layer_group
from yolact_runtime.errors import UsageError, YolactError, first_line
from yolact_runtime.untrusted import beyond, limit

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
    """The work of one kernel, a part of the network, or all of it."""

    operations: Mapping[str, int] = field(default_factory=dict)  # "float32", "int8", ... -> number
    weights: int = 0  # bytes, each weight counted at its first use
    read: int = 0  # bytes of activations
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
    """The work of a node, or of the kernel that fuses a node with others."""

    name: str  # of the first node
    operator: str
    part: str  # one of `PARTS`
    work: Work


@dataclass(frozen=True)
class GraphWork:
    """The work of a graph for a call of `batch` images."""

    batch: int
    unfused: tuple[NodeWork, ...]  # node by node, without those that move nothing
    fused: tuple[NodeWork, ...]  # kernel by kernel
    floor: Work  # with the graph's inputs and outputs as the only activations
    unknown: tuple[str, ...]  # nodes with unknown shapes, which are not counted


def at_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy of a graph for `batch` images in a call, with the shapes and types of all tensors.

    ONNX Runtime's inference follows shapes that are computed, such as by a division; ONNX's own does not.

    Raises:
        UsageError: less than 1, or the graph is for another batch size.
        YolactError: the shapes cannot be inferred.
    """
    if not 1 <= batch <= limit("batch"):
        raise UsageError(f"batch is {batch}; it must be 1 or more, and at most {beyond('batch')}")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in result.graph.input:
        for size in value.type.tensor_type.shape.dim[:1]:
            if size.dim_value not in (0, batch):
                raise UsageError(
                    f"batch is {batch}, but the graph is for {size.dim_value}; export it with --max-batch"
                )
            size.dim_value = batch
    try:
        # Guessing the rank lets it go on after an unknown operator, whose output sizes stay unknown.
        described = SymbolicShapeInference.infer_shapes(result, auto_merge=True, guess_output_rank=True)
    except Exception as error:  # it raises plain exceptions
        raise YolactError(f"the shapes of the graph cannot be inferred ({first_line(error)})") from error
    if described is None:
        raise YolactError("the graph has an opset below 7; convert it to a later one")
    return described


def count_work(model: onnx.ModelProto, batch: int) -> GraphWork:
    """Count the work of any graph; its parts are found by the names that yolact-export gives.

    Raises:
        UsageError: the graph is for another batch size.
        YolactError: it has no convolution or matrix product with known shapes.
    """
    return _Counter(at_batch(model, batch)).count(batch)


class _Counter:
    """Counts the work of a graph with described tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = self.graph = model.graph
        self.weights = {tensor.name for tensor in graph.initializer}
        described = (*graph.input, *graph.value_info, *graph.output)
        sizes = {value.name: _bytes(value.type.tensor_type) for value in described}
        sizes |= {one.name: _bytes_of(one.dims, one.data_type) for one in graph.initializer}
        self.sizes = {name: size for name, size in sizes.items() if size is not None}
        # The tensor in memory behind each one that is only another view of it.
        self.base: dict[str, str] = {}
        for node in graph.node:
            if node.op_type in _VIEWS:
                stored = self.base[node.output[0]] = self.base.get(node.input[0], node.input[0])
                if stored not in self.sizes:
                    self.sizes.pop(node.output[0], None)
        batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value
        computing = [index for index, node in enumerate(graph.node) if node.op_type in COMPUTE]
        operations = ({layer.kind: 2 * layer.macs * batch} for layer in layer_compute(model))
        self.operations = dict(zip(computing, operations, strict=True))

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
        entering = {value.name for value in self.graph.input} - self.weights
        read = sum(self.sizes.get(name, 0) for name in entering)
        written = sum(self.sizes.get(value.name, 0) for value in self.graph.output)
        floor = Work(total.operations, total.weights, read, written)
        return GraphWork(batch, unfused, fused, floor, tuple(unknown))

    def _kernels(self, groups: Sequence[Sequence[int]], in_place: bool = False) -> tuple[NodeWork, ...]:
        """The work of groups of nodes, each a kernel; each weight is counted in the first that reads it."""
        reads = [self._reads(group) for group in groups]
        leaving = (self.base.get(value.name, value.name) for value in self.graph.output)
        needed = set(leaving).union(*reads)
        seen: set[str] = set()
        kernels = []
        for group, read in zip(groups, reads, strict=True):
            first = self.graph.node[group[0]]
            if in_place and first.op_type == _IN_PLACE:
                continue
            weights = read.keys() & self.weights
            work = Work(
                Work.sum(Work(self.operations.get(index, {})) for index in group).operations,
                sum(self.sizes[name] for name in weights - seen),
                sum(amount for name, amount in read.items() if name not in weights),
                sum(self.sizes[name] for name in self._computed(group) & needed),
            )
            seen |= weights
            part = layer_group(first).partition(".")[0]
            kernels.append(NodeWork(first.name or first.output[0], first.op_type, part, work))
        return tuple(kernels)

    def _fuse(self, counted: Sequence[int]) -> list[list[int]]:
        """Group nodes with the one whose output they change; the groups are in the graph's order."""
        maker = {name: index for index in counted for name in self._computed([index])}
        first: dict[int, int] = {}
        groups: dict[int, list[int]] = defaultdict(list)
        for index in counted:
            latest = max((maker[name] for name in self._inputs(index) if name in maker), default=index)
            fused = self.graph.node[index].op_type in _FUSED and self.graph.node[latest].op_type != _IN_PLACE
            first[index] = first.get(latest, index) if fused else index
            groups[first[index]].append(index)
        return list(groups.values())

    def _computed(self, group: Iterable[int]) -> set[str]:
        return {name for index in group for name in self.graph.node[index].output if name}

    def _reads(self, group: Sequence[int]) -> dict[str, int]:
        """The tensors in memory that a kernel reads but does not compute, and how many bytes of each."""
        total = Counter[str]()
        for index in group:
            total.update(self._inputs(index))
        computed = self._computed(group)
        return {name: min(size, self.sizes[name]) for name, size in total.items() if name not in computed}

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


def _bytes(tensor: onnx.TypeProto.Tensor) -> int | None:
    """The size of a tensor; None if a dimension is unknown."""
    sizes = tensor.shape.dim
    if not tensor.HasField("shape") or not all(size.HasField("dim_value") for size in sizes):
        return None
    return _bytes_of([size.dim_value for size in sizes], tensor.elem_type)


def _bytes_of(sizes: Iterable[int], kind: int) -> int:
    """The size of a tensor of these sizes and this element type.

    Raises:
        YolactError: a tensor of a graph cannot have them.
    """
    sizes = list(sizes)
    if kind not in helper.get_all_tensor_dtypes() or any(size < 0 for size in sizes):
        raise YolactError(f"the graph has a tensor of the sizes {sizes} and the element type {kind}")
    return math.prod(sizes) * int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
