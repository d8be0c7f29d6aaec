"""Adds models to a model repository of the Triton Inference Server.

    REPOSITORY/<name>/config.pbtxt
    REPOSITORY/<name>/labels.txt
    REPOSITORY/<name>/1/model.onnx | model.plan

The configuration is built as Triton's own protocol buffer message, which checks its fields and types.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import onnx

from yolact_export.onnx_graph import graph_metadata, read_graph
from yolact_runtime.engines.onnx_file import check_onnx
from yolact_runtime.engines.outputs import GraphOutputs
from yolact_runtime.engines.tensorrt.record import read_engine
from yolact_runtime.errors import UsageError, YolactError, escape_controls
from yolact_runtime.files import atomic_folder, is_file
from yolact_runtime.metadata import Metadata
from yolact_runtime.packages import imports_failed
from yolact_runtime.untrusted import beyond, limit

# Triton's backend and the name of its model file, by the suffix of our file.
_BACKENDS = {
    ".onnx": ("onnxruntime", "model.onnx"),
    ".engine": ("tensorrt", "model.plan"),
    ".plan": ("tensorrt", "model.plan"),
}
_TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float16": "TYPE_FP16", "float32": "TYPE_FP32"}

_LONGEST_DELAY = 60_000_000  # a minute, in microseconds


class TensorSpec(NamedTuple):
    """An input or output: `dtype` is NumPy's name; `shape` starts with the batch, None if dynamic."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


# Inputs and outputs.
Tensors = tuple[list[TensorSpec], list[TensorSpec]]


@dataclass(frozen=True)
class TritonOptions:
    """How the server runs the model.

    Attributes:
        instances: Copies of the model on each device.
        queue_delay_us: Longest wait for more requests to join a batch, in microseconds.
    """

    instances: int = 1
    queue_delay_us: int = 2000

    def __post_init__(self) -> None:
        if not 1 <= self.instances <= limit("streams"):
            raise UsageError(f"--triton-instances {self.instances}; allowed: 1 to {beyond('streams')}")
        if not 0 <= self.queue_delay_us <= _LONGEST_DELAY:
            raise UsageError(
                f"--triton-queue-delay {self.queue_delay_us}; allowed: 0 to {_LONGEST_DELAY} microseconds"
            )


def write_repository(model: Path, repository: Path, name: str, options: TritonOptions | None = None) -> Path:
    """Add `model` to a repository; on an error, nothing is added.

    Args:
        model: `.onnx`, `.engine` or `.plan` of yolact-export; it is copied.
        repository: Folder of the repository, which is created if it does not exist.
        name: The model's name on the server: letters, digits, `_`, `-`, `.`.
        options: How the server runs the model.

    Returns:
        The model's folder.

    Raises:
        UsageError: the name or the suffix is not allowed.
        YolactError: the repository has a model of that name, or `model` is damaged or has no metadata.
    """
    if not re.fullmatch(r"[\w.-]+", name) or len(name.encode()) > 200:
        raise UsageError(f"model name {name!r}; allowed: up to 200 letters, digits, '_', '-' and '.'")
    if model.suffix not in _BACKENDS:
        raise UsageError(f"{model}: Triton takes {', '.join(_BACKENDS)} files")
    target = repository / name
    if target.exists():
        raise YolactError(f"{target} exists; delete it, or choose another name with --triton-name")
    metadata, tensors = _read_model(model)
    text = _config_text(model, metadata, tensors, name, options or TritonOptions())
    # A server that polls its repository must not see half a model.
    with atomic_folder(target) as folder:
        (folder / "1").mkdir()
        (folder / "config.pbtxt").write_text(text, encoding="utf-8")
        (folder / "labels.txt").write_text(_label_lines(metadata), encoding="utf-8")
        shutil.copyfile(model, folder / "1" / _BACKENDS[model.suffix][1])
    return target


def _label_lines(metadata: Metadata) -> str:
    """The class names, one on each line; line ends and other control characters within a name are escaped."""
    names = (escape_controls(name) for name in metadata.class_names)
    return "".join(f"{name}\n" for name in names)


def _read_model(path: Path) -> tuple[Metadata, Tensors]:
    """Metadata, inputs and outputs of a model.

    Raises:
        UsageError: an engine of a library that Triton does not run.
        YolactError: it is damaged, its metadata does not match, or some of its weights are in another file.
    """
    if path.suffix == ".onnx":
        metadata, tensors = _read_onnx(path)
        if check_onnx(path).external:
            raise YolactError(f"{path} has weights in another file; export it again, for one file")
        return metadata, tensors
    metadata, record = read_engine(path)
    if record.library != "tensorrt":
        raise UsageError(
            f"{path} is an engine of {record.title}; Triton runs TensorRT engines: give {record.onnx_file}"
        )
    source = path.parent / record.onnx_file
    if not is_file(source):
        raise YolactError(f"{path} needs {source}, which it was built from, for its inputs and outputs")
    inputs, outputs = _read_onnx(source)[1]
    return metadata, (inputs, _plugin_outputs(outputs, metadata) if record.plugin else outputs)


def _read_onnx(path: Path) -> tuple[Metadata, Tensors]:
    """Metadata, inputs and outputs of an ONNX file, which match each other."""
    graph = read_graph(path)
    metadata = graph_metadata(graph, path)
    inputs, outputs = (
        [_spec(value, path) for value in values] for values in (graph.graph.input, graph.graph.output)
    )
    expected = GraphOutputs(metadata, path)
    expected.check(*({spec.name: spec.shape for spec in specs} for specs in (inputs, outputs)))
    expected.check_input(inputs[0].shape, inputs[0].dtype)
    return metadata, (inputs, outputs)


def _spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    tensor = value.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = {"float": "float32"}.get(kind, kind)
    if dtype not in _TYPES:
        raise YolactError(
            f"{path}: {value.name} is in {dtype}; {', '.join(_TYPES)} are allowed: export it again"
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


def _config_text(model: Path, metadata: Metadata, tensors: Tensors, name: str, options: TritonOptions) -> str:
    """`config.pbtxt` of a model.

    The server forms batches if the model accepts several sizes, and warms up every instance with the smallest
    and the largest one.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2 as schema
    except ImportError as error:
        raise imports_failed(error, "--to triton", "triton") from error
    backend, file_name = _BACKENDS[model.suffix]
    # With 0, the server forms no batches, and shapes include the batch.
    batching = metadata.max_batch if metadata.max_batch > metadata.min_batch else 0
    message = schema.ModelConfig(name=name, backend=backend, max_batch_size=batching)
    message.default_model_filename = file_name
    if backend == "tensorrt":
        message.platform = "tensorrt_plan"
    inputs, outputs = tensors
    entries = [(spec, message.input.add()) for spec in inputs]
    for spec, entry in entries + [(spec, message.output.add()) for spec in outputs]:
        entry.name = spec.name
        entry.data_type = schema.DataType.Value(_TYPES[spec.dtype])
        dims = _dims(spec, batching, metadata)
        entry.dims.extend(dims or [1])
        if not dims:  # one number for each image: Triton needs a size, and a reshape that removes it
            entry.reshape.SetInParent()
        if spec.name == "classes":
            entry.label_filename = "labels.txt"
    message.instance_group.add(count=options.instances, kind=schema.ModelInstanceGroup.KIND_AUTO)
    if batching:
        message.dynamic_batching.max_queue_delay_microseconds = options.queue_delay_us
        message.dynamic_batching.preferred_batch_size.append(batching)
    for size in sorted({1, batching} - {0}):
        warm_up_name = f"batch_{size if batching else metadata.min_batch}"
        warm_up = message.model_warmup.add(name=warm_up_name, batch_size=size)
        for spec in inputs:
            data = warm_up.inputs[spec.name]
            data.data_type, data.random_data = schema.DataType.Value(_TYPES[spec.dtype]), True
            data.dims.extend(_dims(spec, batching, metadata))
    kept = {key: value for key, value in asdict(metadata).items() if key != "mask_iou_net"}
    message.parameters["yolact"].string_value = json.dumps(kept)
    return text_format.MessageToString(message)


def _dims(spec: TensorSpec, batching: int, metadata: Metadata) -> list[int]:
    """Sizes of a tensor as Triton expects them: without the batch if the server forms batches."""
    sizes = [size if size is not None else metadata.max_batch for size in spec.shape]
    return sizes[1:] if batching else sizes
