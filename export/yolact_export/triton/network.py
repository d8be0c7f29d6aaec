"""The network of an exported file: its metadata, inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import onnx

from yolact_export.onnx_graph import graph_metadata, read_graph
from yolact_runtime.engines.onnx_file import check_onnx
from yolact_runtime.engines.outputs import GraphOutputs
from yolact_runtime.engines.tensorrt.record import read_engine
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import is_file
from yolact_runtime.metadata import Metadata

# Triton's backend and the name of its model file, by the suffix of our file.
BACKENDS = {
    ".onnx": ("onnxruntime", "model.onnx"),
    ".engine": ("tensorrt", "model.plan"),
    ".plan": ("tensorrt", "model.plan"),
}
TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float16": "TYPE_FP16", "float32": "TYPE_FP32"}


class TensorSpec(NamedTuple):
    """An input or output: `dtype` is NumPy's name; `shape` starts with the batch, None if dynamic."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Network(NamedTuple):
    """What an exported file computes.

    Attributes:
        file: The file.
        metadata: Of the file.
        inputs, outputs: Of the graph.
    """

    file: Path
    metadata: Metadata
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]

    @property
    def backend(self) -> str:
        """Triton's name of the backend that runs the file."""
        return BACKENDS[self.file.suffix][0]

    @property
    def batching(self) -> int:
        """Most images in a batch that the server makes; 0 if the network takes one size only."""
        meta = self.metadata
        return meta.max_batch if meta.max_batch > meta.min_batch else 0

    def dims(self, spec: TensorSpec) -> list[int]:
        """Sizes of a tensor as Triton expects them: without the batch if the server forms batches."""
        sizes = [size if size is not None else self.metadata.max_batch for size in spec.shape]
        return sizes[1:] if self.batching else sizes


def read_network(path: Path) -> Network:
    """The network of an `.onnx`, `.engine` or `.plan` file of yolact-export.

    Raises:
        UsageError: another suffix, or an engine of a library that Triton does not run.
        YolactError: it is damaged, its metadata does not match, or some of its weights are in another file.
    """
    if path.suffix not in BACKENDS:
        raise UsageError(f"{path}: Triton takes {', '.join(BACKENDS)} files")
    if path.suffix == ".onnx":
        network = _read_onnx(path)
        if check_onnx(path).external:
            raise YolactError(f"{path} has weights in another file; export it again, for one file")
        return network
    metadata, record = read_engine(path)
    if record.library != "tensorrt":
        raise UsageError(
            f"{path} is an engine of {record.title}; Triton runs TensorRT engines: give {record.onnx_file}"
        )
    source = path.parent / record.onnx_file
    if not is_file(source):
        raise YolactError(f"{path} needs {source}, which it was built from, for its inputs and outputs")
    _, _, inputs, outputs = _read_onnx(source)
    return Network(path, metadata, inputs, _plugin_outputs(outputs, metadata) if record.plugin else outputs)


def _read_onnx(path: Path) -> Network:
    """The network of an ONNX file, whose metadata, inputs and outputs match each other."""
    graph = read_graph(path)
    metadata = graph_metadata(graph, path)
    inputs, outputs = (
        [_spec(value, path) for value in values] for values in (graph.graph.input, graph.graph.output)
    )
    expected = GraphOutputs(metadata, path)
    expected.check(*({spec.name: spec.shape for spec in specs} for specs in (inputs, outputs)))
    expected.check_input(inputs[0].shape, inputs[0].dtype)
    return Network(path, metadata, inputs, outputs)


def _spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    tensor = value.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = {"float": "float32"}.get(kind, kind)
    if dtype not in TYPES:
        raise YolactError(
            f"{path}: {value.name} is in {dtype}; {', '.join(TYPES)} are allowed: export it again"
        )
    return TensorSpec(value.name, dtype, tuple(dim.dim_value or None for dim in tensor.shape.dim))


def _plugin_outputs(heads: list[TensorSpec], metadata: Metadata) -> list[TensorSpec]:
    """The outputs of an engine whose plugins detect from these heads."""
    prototypes = next(spec for spec in heads if spec.name == "prototypes")
    batch, rows = prototypes.shape[0], metadata.max_detections
    return [
        TensorSpec("count", "int32", (batch,)),
        TensorSpec("boxes", "float32", (batch, rows, 4)),
        TensorSpec("scores", "float32", (batch, rows)),
        TensorSpec("classes", "int32", (batch, rows)),
        TensorSpec("coefficients", "float32", (batch, rows, prototypes.shape[-1])),
        prototypes,
    ]
