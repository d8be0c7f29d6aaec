"""Configurations of models, as Triton's own protocol buffer message, which checks fields and types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yolact_export.triton.network import TYPES, Tensors, TensorSpec
from yolact_export.triton.options import TritonOptions
from yolact_runtime.metadata import Metadata
from yolact_runtime.packages import imports_failed
from yolact_runtime.serving.tensors import API, ARRAY, ENGINE, IMAGE, OUTPUTS, SIZE, Spec, prepared

# Triton's backend and the name of its model file, by the suffix of our file.
BACKENDS = {
    ".onnx": ("onnxruntime", "model.onnx"),
    ".engine": ("tensorrt", "model.plan"),
    ".plan": ("tensorrt", "model.plan"),
}
_TYPES = {**TYPES, "bytes": "TYPE_STRING", "int64": "TYPE_INT64"}


class ConfigWriter:
    """Writes the `config.pbtxt` of the models of one network.

    Args:
        name: Of the model "instances"; the others have a suffix.
        metadata: Of the network.
        tensors: Its inputs and outputs.
        options: How the server runs it.

    Raises:
        YolactError: tritonclient is not installed.
    """

    def __init__(self, name: str, metadata: Metadata, tensors: Tensors, options: TritonOptions) -> None:
        try:
            from google.protobuf import text_format
            from tritonclient.grpc import model_config_pb2
        except ImportError as error:
            raise imports_failed(error, "--to triton", "triton") from error
        self._format, self._schema = text_format, model_config_pb2
        self._name, self._meta, self._options = name, metadata, options
        self._inputs, self._outputs = tensors
        # With 0, the server forms no batches, and shapes include the batch.
        self._batching = metadata.max_batch if metadata.max_batch > metadata.min_batch else 0

    def instances(self, engine: str) -> str:
        """Image to instances; `engine` is the file beside its `model.py`."""
        # One image for each request, whatever the network takes.
        message = self._python(self._name, max(1, self._batching))
        network_input = prepared(self._meta.input_shape, self._meta.input_dtype)
        self._add(message, message.input, [IMAGE, ARRAY, network_input, SIZE], optional=True)
        self._add(message, message.output, [*OUTPUTS, ENGINE])
        given = {"backend": self._options.backend, "threads": self._options.threads}
        more = {name: str(value) for name, value in given.items() if value}
        self._parameters(message, engine=engine, **more)
        return self._text(message)

    def raw(self, suffix: str) -> str:
        """The network alone; `suffix` of its file. The server warms up each instance."""
        backend, file_name = BACKENDS[suffix]
        message = self._schema.ModelConfig(
            name=f"{self._name}_raw", backend=backend, max_batch_size=self._batching
        )
        message.default_model_filename = file_name
        if backend == "tensorrt":
            message.platform = "tensorrt_plan"
        self._add_network(message, message.input, self._inputs)
        self._add_network(message, message.output, self._outputs)
        for output in message.output:
            if output.name == "classes":
                output.label_filename = "labels.txt"
        self._run(message, message.max_batch_size)
        for size in sorted({1, self._batching} - {0}):
            warm_up_name = f"batch_{size if self._batching else self._meta.min_batch}"
            warm_up = message.model_warmup.add(name=warm_up_name, batch_size=size)
            for spec in self._inputs:
                data = warm_up.inputs[spec.name]
                data.data_type, data.random_data = self._type(spec), True
                data.dims.extend(self._dims(spec))
        self._parameters(message)
        return self._text(message)

    def prepare(self) -> str:
        """The first step of the ensemble: image to the network's input."""
        message = self._python(f"{self._name}_prepare", self._batching)
        self._add(message, message.input, [IMAGE, ARRAY], optional=True)
        self._add_network(message, message.output, self._inputs)
        self._add(message, message.output, [SIZE])
        self._parameters(message)
        return self._text(message)

    def assemble(self) -> str:
        """Its last step: outputs of the network to instances."""
        message = self._python(f"{self._name}_instances", self._batching)
        self._add_network(message, message.input, self._outputs)
        self._add(message, message.input, [SIZE])
        self._add(message, message.output, OUTPUTS)
        self._parameters(message)
        return self._text(message)

    def ensemble(self) -> str:
        """Both steps with the network between them."""
        message = self._schema.ModelConfig(
            name=f"{self._name}_ensemble", platform="ensemble", max_batch_size=self._batching
        )
        self._add(message, message.input, [IMAGE, ARRAY], optional=True)
        self._add(message, message.output, OUTPUTS)
        networks = [spec.name for spec in self._inputs], [spec.name for spec in self._outputs]
        outputs = [spec.name for spec in OUTPUTS]
        steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]] = (
            ("prepare", _same([IMAGE.name, ARRAY.name]), {**_same(networks[0]), SIZE.name: "image_size"}),
            ("raw", _same(networks[0]), {name: f"raw_{name}" for name in networks[1]}),
            (
                "instances",
                {**{name: f"raw_{name}" for name in networks[1]}, SIZE.name: "image_size"},
                _same(outputs),
            ),
        )
        for suffix, inputs, found in steps:
            step = message.ensemble_scheduling.step.add(model_name=f"{self._name}_{suffix}", model_version=-1)
            step.input_map.update(inputs)
            step.output_map.update(found)
        self._parameters(message)
        return self._text(message)

    def _python(self, name: str, most: int) -> Any:
        """A model of the Python backend."""
        message = self._schema.ModelConfig(name=name, backend="python", max_batch_size=most)
        self._run(message, most)
        return message

    def _run(self, message: Any, most: int) -> None:
        """Instances, and the batches that the server forms."""
        kinds = self._schema.ModelInstanceGroup
        message.instance_group.add(count=self._options.instances, kind=kinds.KIND_AUTO)
        if most > 1:
            message.dynamic_batching.max_queue_delay_microseconds = self._options.queue_delay_us
            message.dynamic_batching.preferred_batch_size.append(most)

    def _add(self, message: Any, entries: Any, specs: Iterable[Spec], optional: bool = False) -> None:
        """Add inputs or outputs of `yolact_runtime.serving`."""
        for spec in specs:
            entry = entries.add(name=spec.name, data_type=self._schema.DataType.Value(_TYPES[spec.dtype]))
            dims = [-1 if size is None else size for size in spec.shape]
            entry.dims.extend(dims if message.max_batch_size else [1, *dims])
            if optional:
                # Images of several sizes, and requests with other inputs, share a batch.
                entry.optional = entry.allow_ragged_batch = True

    def _add_network(self, message: Any, entries: Any, specs: Iterable[TensorSpec]) -> None:
        """Add inputs or outputs of the network."""
        for spec in specs:
            entry = entries.add(name=spec.name, data_type=self._type(spec))
            dims = self._dims(spec)
            entry.dims.extend(dims or [1])
            if not dims:  # one number for each image: Triton needs a size, and a reshape that removes it
                entry.reshape.SetInParent()

    def _type(self, spec: TensorSpec) -> int:
        value: int = self._schema.DataType.Value(_TYPES[spec.dtype])
        return value

    def _dims(self, spec: TensorSpec) -> list[int]:
        """Sizes of a tensor as Triton expects them: without the batch if the server forms batches."""
        sizes = [size if size is not None else self._meta.max_batch for size in spec.shape]
        return sizes[1:] if self._batching else sizes

    def _parameters(self, message: Any, **more: str) -> None:
        """What clients read: the metadata, and the version of inputs and outputs."""
        kept = {key: value for key, value in asdict(self._meta).items() if key != "mask_iou_net"}
        for name, text in {"yolact": json.dumps(kept), "yolact_api": API, **more}.items():
            message.parameters[name].string_value = text

    def _text(self, message: Any) -> str:
        text: str = self._format.MessageToString(message)
        return text


def _same(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


def engine_name(model: Path) -> str:
    """The name of an engine's file beside `model.py`."""
    return f"model{model.suffix}"
