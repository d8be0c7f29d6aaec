"""`config.pbtxt` of each model, built as Triton's own protocol message, which checks fields and types."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from yolact_export.triton.network import BACKENDS, TYPES, Network, TensorSpec
from yolact_export.triton.options import TritonOptions
from yolact_runtime.metadata import Metadata
from yolact_runtime.packages import imports_failed
from yolact_runtime.serving.answers import API
from yolact_runtime.serving.images import SIZE
from yolact_runtime.serving.triton import AUTO, ENGINE_OPTIONS

# Outputs of a model that finds instances: type, and sizes without the batch.
_INSTANCES: dict[str, tuple[str, list[int]]] = {
    "boxes": ("TYPE_FP32", [-1, 4]),
    "relative_boxes": ("TYPE_FP32", [-1, 4]),
    "scores": ("TYPE_FP32", [-1]),
    "mask_scores": ("TYPE_FP32", [-1]),
    "category_ids": ("TYPE_INT64", [-1]),
    "rles": ("TYPE_STRING", [-1]),
    "areas": ("TYPE_INT64", [-1]),
    SIZE: ("TYPE_INT32", [2]),
}


def raw_config(network: Network, name: str, options: TritonOptions) -> Any:
    """The network alone.

    The server forms batches if the network accepts several sizes, and warms up every instance with the
    smallest and the largest one.
    """
    schema, metadata, batching = _schema(), network.metadata, network.batching
    # With 0, the server forms no batches, and shapes include the batch.
    message = schema.ModelConfig(name=name, backend=network.backend, max_batch_size=batching)
    message.default_model_filename = BACKENDS[network.file.suffix][1]
    if network.backend == "tensorrt":
        message.platform = "tensorrt_plan"
    for spec in network.inputs:
        _add_tensor(message.input, spec, network)
    for spec in network.outputs:
        _add_tensor(message.output, spec, network)
        if spec.name == "classes":
            message.output[-1].label_filename = "labels.txt"
    message.instance_group.add(count=options.instances or 1, kind=schema.ModelInstanceGroup.KIND_AUTO)
    if batching:
        delay = 2000 if options.queue_delay_us is None else options.queue_delay_us
        message.dynamic_batching.max_queue_delay_microseconds = delay
        message.dynamic_batching.preferred_batch_size.append(batching)
    for size in sorted({1, batching} - {0}):
        warm_up_name = f"batch_{size if batching else metadata.min_batch}"
        warm_up = message.model_warmup.add(name=warm_up_name, batch_size=size)
        for spec in network.inputs:
            data = warm_up.inputs[spec.name]
            data.data_type, data.random_data = schema.DataType.Value(TYPES[spec.dtype]), True
            data.dims.extend(network.dims(spec))
    message.parameters["yolact"].string_value = _metadata_text(metadata)
    return message


def python_config(network: Network, name: str, options: TritonOptions) -> Any:
    """Image in, instances out: an engine of `yolact_runtime` in the server's Python."""
    metadata = network.metadata
    message = _python(name, max(1, metadata.max_batch), options.instances or 2, options.queue_delay_us or 0)
    _add_forms(message, batched=True)
    _add_optional(message, "prepared", TYPES[metadata.input_dtype], [*metadata.input_shape, 3])
    _add_optional(message, SIZE, "TYPE_INT32", [2])
    _add_instances(message.output, batched=True)
    _add(message.output, "engine", "TYPE_STRING", [1])
    message.parameters["yolact"].string_value = _metadata_text(metadata)
    for option in ENGINE_OPTIONS:
        message.parameters[option].string_value = AUTO
    return message


def prepare_config(network: Network, name: str, options: TritonOptions) -> Any:
    """The ensemble's first step: image in, the network's input out."""
    message = _python(name, network.batching, options.instances or 1)
    _add_forms(message, bool(network.batching))
    for spec in network.inputs:
        _add_tensor(message.output, spec, network)
    _add(message.output, SIZE, "TYPE_INT32", _sizes([2], bool(network.batching)))
    return message


def instances_config(network: Network, name: str, options: TritonOptions) -> Any:
    """The ensemble's last step: the network's outputs in, instances out."""
    message = _python(name, network.batching, options.instances or 1)
    for spec in network.outputs:
        _add_tensor(message.input, spec, network)
    _add(message.input, SIZE, "TYPE_INT32", _sizes([2], bool(network.batching)))
    _add_instances(message.output, bool(network.batching))
    return message


def ensemble_config(network: Network, name: str, raw: str, prepare: str, instances: str) -> Any:
    """The three steps as one model; `raw`, `prepare` and `instances` are their names.

    A tensor has one name in an ensemble, so that there is no input "size" beside the output of this name.
    """
    batched = bool(network.batching)
    message = _schema().ModelConfig(name=name, platform="ensemble", max_batch_size=network.batching)
    _add_forms(message, batched)
    _add_instances(message.output, batched)
    message.parameters["yolact"].string_value = _metadata_text(network.metadata)
    between = {spec.name: f"raw_{spec.name}" for spec in (*network.inputs, *network.outputs)}
    size = {SIZE: "image_size"}
    given = {entry.name: entry.name for entry in message.input}
    inputs, outputs = ([spec.name for spec in specs] for specs in (network.inputs, network.outputs))
    for model, takes, gives in (
        (prepare, given, {**_some(between, inputs), **size}),
        (raw, _some(between, inputs), _some(between, outputs)),
        (instances, {**_some(between, outputs), **size}, {output: output for output in _INSTANCES}),
    ):
        step = message.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        step.input_map.update(takes)
        step.output_map.update(gives)
    return message


def config_text(message: Any) -> str:
    """A configuration as text."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(message)
    return text


def _schema() -> Any:
    """Triton's protocol messages."""
    try:
        from tritonclient.grpc import model_config_pb2 as schema
    except ImportError as error:
        raise imports_failed(error, "--to triton", "triton") from error
    return schema


def _python(name: str, batching: int, instances: int, delay_us: int = 0) -> Any:
    """A model of the Python backend, without inputs and outputs."""
    schema = _schema()
    message = schema.ModelConfig(name=name, backend="python", max_batch_size=batching)
    message.default_model_filename = "model.py"
    # Arrays are given in main memory; the engine chooses its own device.
    message.instance_group.add(count=instances, kind=schema.ModelInstanceGroup.KIND_CPU)
    if batching:
        message.dynamic_batching.SetInParent()
        message.dynamic_batching.max_queue_delay_microseconds = delay_us
    message.parameters["yolact_api"].string_value = API
    return message


def _add_forms(message: Any, batched: bool) -> None:
    """Add the forms of an image that a request has one of; those of a batch may differ in size."""
    _add_optional(message, "image", "TYPE_STRING", _sizes([1], batched))
    _add_optional(message, "array", "TYPE_UINT8", _sizes([-1, -1, 3], batched))


def _add_optional(message: Any, name: str, data_type: str, sizes: list[int]) -> None:
    entry = _add(message.input, name, data_type, sizes)
    entry.optional, entry.allow_ragged_batch = True, message.HasField("dynamic_batching")


def _add_instances(entries: Any, batched: bool) -> None:
    for name, (data_type, sizes) in _INSTANCES.items():
        _add(entries, name, data_type, _sizes(sizes, batched))


def _add_tensor(entries: Any, spec: TensorSpec, network: Network) -> None:
    dims = network.dims(spec)
    entry = _add(entries, spec.name, TYPES[spec.dtype], dims or [1])
    if not dims:  # one number for each image: Triton needs a size, and a reshape that removes it
        entry.reshape.SetInParent()


def _add(entries: Any, name: str, data_type: str, dims: list[int]) -> Any:
    return entries.add(name=name, data_type=_schema().DataType.Value(data_type), dims=dims)


def _sizes(sizes: list[int], batched: bool) -> list[int]:
    """Sizes with the batch of one image in front, if the server adds none."""
    return sizes if batched else [1, *sizes]


def _some(mapping: dict[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: mapping[name] for name in names}


def _metadata_text(metadata: Metadata) -> str:
    """The metadata as a client reads it, without the weights in it."""
    return json.dumps({key: value for key, value in asdict(metadata).items() if key != "mask_iou_net"})
