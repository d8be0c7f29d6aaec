"""The models of Triton's Python backend: `1/model.py` of each imports its class from here.

    NAME            image to instances, with any engine in its process
    NAME_prepare    the first step of the ensemble: image to the network's input
    NAME_instances  its last step: outputs of the network to instances

`triton_python_backend_utils` exists in the server's processes only.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime import __version__
from yolact_runtime.detections import check_detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.load import load_engine
from yolact_runtime.engines.outputs import GraphOutputs
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.results import Result, result_of
from yolact_runtime.serving.answers import Answer, Answers, answer_of, as_error
from yolact_runtime.serving.requests import Limits, Request, read_input, read_limits
from yolact_runtime.serving.tensors import ENGINE, SIZE
from yolact_runtime.sources.images import silence_opencv
from yolact_runtime.untrusted import parse_json, read_bytes

log = logging.getLogger(__name__)

# Options of `load_engine` that config.pbtxt may set, and how to read their text.
OPTIONS = {"backend": str, "precision": str, "threads": int, "streams": int}
_OURS = {"yolact", "yolact_api", "engine", "decode_threads"}
# The metadata of the network, beside the `model.py` of the ensemble's steps.
METADATA = "metadata.json"


class _Model:
    """What all models share: a batch of requests in, a response for each out."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called once by the server, with its settings; what is raised is in its log, and the model fails."""
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s: %(message)s")
        silence_opencv()
        self.backend: Any = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        if args.get("model_instance_kind") == "GPU":
            # Before any library sees the devices.
            os.environ["CUDA_VISIBLE_DEVICES"] = args["model_instance_device_id"]
        self.batched = config["max_batch_size"] > 0
        self.open(Path(args["model_repository"]) / args["model_version"], parameters)

    def open(self, folder: Path, parameters: Mapping[str, str]) -> None:
        """Open what is in the folder of the model's version."""
        raise NotImplementedError

    def answers(self, requests: Sequence[Any]) -> list[Answer | YolactError]:
        """The outputs of each of the server's requests, without the batch."""
        raise NotImplementedError

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by the server with requests that wait: a response for each."""
        answers: list[Answer | YolactError] = []
        try:
            answers += self.answers(requests)
        except Exception as error:  # none of one request gets here
            answers += [as_error(error) for _ in requests]
        return [self._response(answer) for answer in answers]

    def _response(self, answer: Answer | YolactError) -> Any:
        kinds = self.backend
        if isinstance(answer, YolactError):
            return kinds.InferenceResponse(error=kinds.TritonError(str(answer)))
        return kinds.InferenceResponse([kinds.Tensor(name, value[None]) for name, value in answer.items()])

    def inputs(self, request: Any) -> dict[str, np.ndarray]:
        """The tensors of one of the server's requests."""
        return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


class ImageModel(_Model):
    """Image to instances."""

    def open(self, folder: Path, parameters: Mapping[str, str]) -> None:
        """Open the engine, and run it once with the smallest and the largest batch."""
        options = engine_options(parameters)
        engine = load_engine(folder / parameters["engine"], **options)
        self._answers = Answers(engine, int(parameters.get("decode_threads", "4")))
        meta = engine.metadata
        zeros = np.zeros((*meta.input_shape, 3), meta.input_dtype)
        for count in sorted({1, meta.max_batch}):
            engine.predict_prepared([zeros] * count, [meta.input_shape] * count, 1.0, 1)

    def answers(self, requests: Sequence[Any]) -> list[Answer | YolactError]:
        read = self._answers.each(self._read, requests)
        sound = [one for one in read if isinstance(one, Request)]
        found = iter(self._answers.of(sound))
        answers = [one if isinstance(one, YolactError) else next(found) for one in read]
        for request, answer in zip(read, answers, strict=True):
            if isinstance(request, Request) and isinstance(answer, dict) and ENGINE.name in request.outputs:
                answer[ENGINE.name] = np.array([self._about()], object)
        return answers

    def _read(self, request: Any) -> Request:
        limits = read_limits(request.parameters(), self._answers.engine)
        return Request(self.inputs(request), limits, set(request.requested_output_names()))

    def _about(self) -> bytes:
        engine = self._answers.engine
        about = {"engine": engine.name, "precision": engine.precision, "version": __version__}
        return json.dumps(about).encode()

    def finalize(self) -> None:
        """Called by the server at the end."""
        self._answers.close()


def engine_options(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The options of `load_engine` in the parameters of a config.pbtxt.

    Raises:
        UsageError: an unknown parameter, or a value that is no number.
    """
    if unknown := [name for name in parameters if name not in OPTIONS and name not in _OURS]:
        known = ", ".join([*OPTIONS, "decode_threads"])
        raise UsageError(f"config.pbtxt: unknown parameter {unknown[0]!r}; known are {known}")
    try:
        return {name: kind(parameters[name]) for name, kind in OPTIONS.items() if parameters.get(name)}
    except ValueError as error:
        raise UsageError(f"config.pbtxt: a parameter that must be a whole number is not: {error}") from error


class _Preparing(Engine):
    """Only `prepare` of an engine: the network runs elsewhere."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Any:
        raise NotImplementedError


class _Step(_Model):
    """A step of the ensemble."""

    def open(self, folder: Path, parameters: Mapping[str, str]) -> None:
        """Read the metadata; the network is a model of its own."""
        file = folder / METADATA
        self.metadata = Metadata.from_props(parse_json(read_bytes(file)), file)
        self.engine = _Preparing(self.metadata)
        self.pool = Answers(self.engine)

    def answers(self, requests: Sequence[Any]) -> list[Answer | YolactError]:
        return self.pool.each(self.answer, requests)

    def answer(self, request: Any) -> Answer:
        """The outputs of one request."""
        raise NotImplementedError

    def finalize(self) -> None:
        """Called by the server at the end."""
        self.pool.close()


class PrepareModel(_Step):
    """Image to the network's input."""

    def answer(self, request: Any) -> Answer:
        batch, size = read_input(self.inputs(request), self.engine)
        read_limits(request.parameters(), self.engine)  # before the network runs
        return {"images": batch, SIZE.name: np.array(size, np.int32)}


class InstancesModel(_Step):
    """Outputs of the network to instances."""

    def open(self, folder: Path, parameters: Mapping[str, str]) -> None:
        super().open(folder, parameters)
        self.outputs = GraphOutputs(self.metadata, folder.parent / "config.pbtxt")

    def answer(self, request: Any) -> Answer:
        inputs = self.inputs(request)
        limits = read_limits(request.parameters(), self.engine)
        return answer_of(self._result(inputs, limits), request.requested_output_names())

    def _result(self, inputs: Mapping[str, np.ndarray], limits: Limits) -> Result:
        height, width = (int(side) for side in inputs[SIZE.name].reshape(-1))
        detections = self.outputs.detections([inputs[name] for name in self.outputs.names], limits.classes)
        check_detections(detections, 1, self.metadata)
        values = limits.score_threshold, limits.top_k
        return result_of(detections, 0, (height, width), self.metadata, *values, classes=limits.classes)
