"""Scales channels between convolutions, so that all channels of a tensor use its steps.

A tensor has one step for all channels, and a channel with small values has few of its steps. A Relu,
pooling and resizing pass a positive factor on, so the weights of the convolution before can be divided by a
factor for each channel, and those of the convolutions behind multiplied by it: the network computes the same.
See M. Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019, and
for factors from the values of tensors, G. Xiao et al., SmoothQuant, ICML 2023.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from yolact_export.precision.placement import quantisable, tensor_readers

# These compute each channel alone, and a multiple of their result from a multiple of their input.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "Resize")
# Half of the difference between channels goes to the weights behind, which have few steps, too.
_STRENGTH = 0.5
# Channels that are smaller than this share of the largest are treated like this share.
_SMALLEST = 2.0**-10


@dataclass(frozen=True)
class _Link:
    """Convolutions whose outputs only other convolutions read.

    Attributes:
        before, behind: Names of the weights of the convolutions that write, and of those that read.
        biases: Names of the biases of those that write.
        tensors: What enters the convolutions that read.
    """

    before: str
    behind: frozenset[str]
    biases: frozenset[str]
    tensors: frozenset[str]


def link_tensors(model: onnx.ModelProto) -> list[str]:
    """The tensors whose channels `equalise` scales, sorted."""
    return sorted({name for link in _links(model) for name in link.tensors})


def equalise(model: onnx.ModelProto, largest: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A graph that computes the same, with channels of more equal size between convolutions.

    Args:
        model: The float32 graph; it is not changed.
        largest: Largest absolute value of each channel, (C,), of the tensors that `link_tensors` names.
    """
    result = copy.deepcopy(model)
    indices = {tensor.name: index for index, tensor in enumerate(result.graph.initializer)}

    def scale(name: str, factors: np.ndarray) -> None:
        tensor = result.graph.initializer[indices[name]]
        value = numpy_helper.to_array(tensor) * factors
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))

    for link in _links(model):
        reach = np.max([largest[name] for name in link.tensors], axis=0)  # (C,)
        if not reach.max() > 0:
            continue
        factors = np.maximum(reach / reach.max(), _SMALLEST) ** _STRENGTH
        scale(link.before, 1 / factors[:, None, None, None])
        for name in link.biases:
            scale(name, 1 / factors)
        for name in link.behind:
            scale(name, factors[None, :, None, None])
    return result


def _links(model: onnx.ModelProto) -> list[_Link]:
    """All links of a graph; layers that share weights, as the heads of all levels do, are in one."""
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)  # of initializers
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name in constants.intersection(node.input):
            users[name].append(node)
    readers = tensor_readers(model)
    chosen = {node.output[0]: node for node in quantisable(model) if _plain(node)}
    found = []
    for weight in dict.fromkeys(node.input[1] for node in chosen.values()):
        writing = users[weight]
        reading: dict[str, onnx.NodeProto] = {}
        biases = {name for node in writing for name in node.input[2:] if name}
        whole = all(_follow(node.output[0], readers, chosen, reading) for node in writing)
        behind = {node.input[1] for node in reading.values()}
        inside = all(user.output[0] in reading for name in behind for user in users[name])
        same = all(user in writing for name in biases for user in users[name]) and biases <= constants
        if whole and reading and inside and same and all(_plain(node) for node in writing):
            tensors = frozenset(node.input[0] for node in reading.values())
            found.append(_Link(weight, frozenset(behind), frozenset(biases), tensors))
    return found


def _plain(node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution that reads all of its input channels for each output channel."""
    groups = next((one.i for one in node.attribute if one.name == "group"), 1)
    return node.op_type == "Conv" and groups == 1


def _follow(
    tensor: str,
    readers: Mapping[str, list[onnx.NodeProto]],
    chosen: Mapping[str, onnx.NodeProto],
    reading: dict[str, onnx.NodeProto],
) -> bool:
    """Collect in `reading` the convolutions that read a tensor; False if anything else does."""
    for node in readers.get(tensor, []):
        if not node.input or node.input[0] != tensor:
            return False
        if node.output[0] in chosen:
            reading[node.output[0]] = node
        elif node.op_type not in _HOMOGENEOUS or not _follow(node.output[0], readers, chosen, reading):
            return False
    return True
