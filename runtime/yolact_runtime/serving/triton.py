"""The models of Triton's Python backend: each `model.py` of a repository imports one of them.

Triton's module exists in a server only, so it is imported where it is used.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from yolact_runtime.engines.choose import cuda_may_load
from yolact_runtime.engines.load import load_engine
from yolact_runtime.engines.threads import usable_cores
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import is_file, read_json
from yolact_runtime.metadata import Metadata
from yolact_runtime.serving.answers import API
from yolact_runtime.serving.service import (
    Answer,
    InstanceService,
    PrepareService,
    Refusal,
    Request,
    ResultService,
    refusal,
)
from yolact_runtime.sources.images import silence_opencv
from yolact_runtime.typed import nearest

# The file that an engine is opened from, in the folder of a version: the first that is there.
ENGINE_FILES = ("model.onnx", "model.engine", "model.plan")
# `Metadata.to_props` of the network, for the steps before and after it.
METADATA_FILE = "metadata.json"
# Parameters of config.pbtxt, and the options of `load_engine` that they set unless they are AUTO.
ENGINE_OPTIONS = {
    "engine_backend": "backend",
    "engine_precision": "precision",
    "engine_threads": "threads",
    "engine_providers": "providers",
}
AUTO = "auto"


class _Service(Protocol):
    def answer(self, requests: Sequence[Request]) -> list[Answer]: ...

    def close(self) -> None: ...


class _Model(ABC):
    """What Triton calls."""

    _service: _Service

    @abstractmethod
    def open(self, folder: Path, config: Mapping[str, Any]) -> _Service:
        """What answers the requests.

        Args:
            folder: Of the model's version.
            config: The model's configuration.

        Raises:
            YolactError: a file is missing or damaged, or the configuration is wrong.
        """

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the model; the server logs why it cannot."""
        import triton_python_backend_utils as pb

        logging.basicConfig(level=logging.INFO, format="yolact: %(levelname)s: %(message)s")
        silence_opencv()
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        try:
            _check_api(config)
            self._service = self.open(folder, config)
        except YolactError as error:
            raise pb.TritonModelException(str(error)) from None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each of the requests that the server has put together."""
        read = [_request_of(request) for request in requests]
        answers = iter(self._service.answer([item for item in read if isinstance(item, Request)]))
        return [_response_of(item if isinstance(item, Refusal) else next(answers)) for item in read]

    def finalize(self) -> None:
        """The server unloads the model."""
        self._service.close()


class InstancesModel(_Model):
    """`<name>`: image in, instances out."""

    def open(self, folder: Path, config: Mapping[str, Any]) -> InstanceService:
        files = [folder / name for name in ENGINE_FILES if is_file(folder / name)]
        if not files:
            raise YolactError(f"{folder} has none of {', '.join(ENGINE_FILES)}")
        options = engine_options(config)
        options |= _shared_cores(files[0], options, config)
        service = InstanceService(load_engine(files[0], **options))
        service.warm_up()
        return service


class PrepareModel(_Model):
    """`<name>_prepare`: the ensemble's first step, image in, the network's input out."""

    def open(self, folder: Path, config: Mapping[str, Any]) -> PrepareService:
        return PrepareService(read_metadata(folder))


class ResultModel(_Model):
    """`<name>_instances`: the ensemble's last step, the network's outputs in, instances out."""

    def open(self, folder: Path, config: Mapping[str, Any]) -> ResultService:
        return ResultService(read_metadata(folder))


def engine_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `load_engine` from the parameters of a model's configuration.

    Raises:
        UsageError: a parameter is unknown, or is not what its option takes.
    """
    options: dict[str, Any] = {}
    for name, entry in config.get("parameters", {}).items():
        if not name.startswith("engine_"):
            continue
        if name not in ENGINE_OPTIONS:
            raise UsageError(f"config.pbtxt: unknown parameter {name}; {nearest(name, ENGINE_OPTIONS)}")
        if (value := entry.get("string_value") or AUTO) != AUTO:
            options[ENGINE_OPTIONS[name]] = value
    if "providers" in options:
        options["providers"] = [name.strip() for name in options["providers"].split(",")]
    if "threads" in options:
        text = options["threads"]
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise UsageError(f"config.pbtxt: engine_threads is {text!r}; a whole number or {AUTO} is needed")
        options["threads"] = int(text)
    return options


def _shared_cores(file: Path, options: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """The option `threads` for one of several instances on the CPU that nobody has set it for."""
    instances = sum(group.get("count", 1) for group in config.get("instance_group", ()))
    named = options.keys() & {"threads", "providers"}
    on_gpu = options.get("backend") in ("cuda", "tensorrt") or file.suffix in (".engine", ".plan")
    if instances < 2 or named or on_gpu or ("backend" not in options and cuda_may_load()):
        return {}
    return {"threads": max(1, usable_cores() // instances)}


def read_metadata(folder: Path) -> Metadata:
    """The network's metadata in the folder of a model's version.

    Raises:
        YolactError: it is missing or damaged.
    """
    path = folder / METADATA_FILE
    content = read_json(path, "metadata")
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise YolactError(f"{path} is not what yolact-export writes; export the repository again")
    return Metadata.from_props(content, path)


def _check_api(config: Mapping[str, Any]) -> None:
    version = config.get("parameters", {}).get("yolact_api", {}).get("string_value")
    if version != API:
        raise YolactError(
            f"config.pbtxt has version {version} of the inputs and outputs, and this toolkit has {API};"
            " export the repository again, or install the version of the toolkit that wrote it"
        )


def _request_of(request: Any) -> Request | Refusal:
    try:
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        return Request(inputs, request.parameters(), request.requested_output_names())
    except UnicodeDecodeError:
        return Refusal("the request has a parameter that is not UTF-8")
    except Exception as error:
        return refusal(error)


def _response_of(answer: Answer) -> Any:
    import triton_python_backend_utils as pb

    if isinstance(answer, Refusal):
        code = pb.TritonError.INTERNAL if answer.internal else pb.TritonError.INVALID_ARG
        return pb.InferenceResponse(error=pb.TritonError(answer.reason, code))
    try:
        return pb.InferenceResponse([pb.Tensor(name, value) for name, value in answer.items()])
    except Exception as error:
        return _response_of(refusal(error, internal=True))
