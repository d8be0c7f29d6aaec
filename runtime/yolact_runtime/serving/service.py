"""Requests that a server received together, answered with an engine."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from yolact_runtime.detections import check_detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.outputs import INPUT, GraphOutputs
from yolact_runtime.engines.threads import usable_cores
from yolact_runtime.errors import YolactError, escape_controls
from yolact_runtime.metadata import Metadata
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.results import Result, result_of
from yolact_runtime.serving.answers import answer
from yolact_runtime.serving.images import SIZE, Prepared, read_request, read_size
from yolact_runtime.serving.parameters import Parameters, read_parameters
from yolact_runtime.version import __version__

log = logging.getLogger(__name__)
S = TypeVar("S")
T = TypeVar("T")


class Request(NamedTuple):
    """A request of one image.

    Attributes:
        inputs: Arrays by name, each with a dimension for the batch in front.
        parameters: A JSON object, as for `read_parameters`.
        outputs: Names of those to return.
    """

    inputs: Mapping[str, np.ndarray]
    parameters: str
    outputs: Collection[str]


class Refusal(NamedTuple):
    """Why a request has no outputs.

    Attributes:
        reason: One line.
        internal: The request may be in order, and the fault that of the engine or the server.
    """

    reason: str
    internal: bool = False


# The outputs of a request, with a dimension for the batch in front, or why there are none.
Answer = Mapping[str, np.ndarray] | Refusal


def refusal(error: Exception, internal: bool = False) -> Refusal:
    """The answer to a request that raised an error; what is not meant for clients goes to the log."""
    if isinstance(error, YolactError):
        return Refusal(escape_controls(str(error)), internal)
    log.error("a request failed", exc_info=error)
    return Refusal(f"{type(error).__name__} on the server, whose log has more", internal=True)


class Workers:
    """Threads for the work on single images; a single image needs none."""

    def __init__(self) -> None:
        """Threads start when they are first used."""
        self._pool = ThreadPoolExecutor(usable_cores(), "image")

    def each(self, work: Callable[[S], T], items: Sequence[S]) -> list[T | Refusal]:
        """`work` of each item, or why it failed."""

        def safe(item: S) -> T | Refusal:
            try:
                return work(item)
            except Exception as error:
                return refusal(error)

        return list(map(safe, items) if len(items) < 2 else self._pool.map(safe, items))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


class _Job(NamedTuple):
    """A request whose image is ready."""

    image: Prepared
    parameters: Parameters


class InstanceService:
    """Images in, instances out.

    Args:
        engine: Finds them; closed with the service.
    """

    def __init__(self, engine: Engine) -> None:
        """Start the threads."""
        self.engine = engine
        self._workers = Workers()
        facts = {"engine": engine.name, "precision": engine.precision, "version": __version__}
        facts["model"] = _digest(engine.metadata)
        self._facts = np.array([[json.dumps(facts).encode()]], object)

    def warm_up(self) -> None:
        """Run the smallest and the largest batch once, so that the first request is not slow."""
        meta = self.engine.metadata
        blank = np.zeros((*meta.input_shape, 3), np.uint8)
        for count in sorted({1, meta.max_batch}):
            self.engine.predict([blank] * count)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer for each request, in order; a bad request does not affect the others."""
        jobs = self._workers.each(self._read, requests)
        results: dict[int, Result | Refusal] = {
            position: job for position, job in enumerate(jobs) if isinstance(job, Refusal)
        }
        for parameters, images in _batches(jobs, self.engine.metadata.max_batch):
            found = self._predict(list(images.values()), parameters)
            results.update(zip(images, found, strict=True))
        pairs = [(results[position], request.outputs) for position, request in enumerate(requests)]
        return self._workers.each(self._outputs, pairs)

    def close(self) -> None:
        """Close the engine."""
        self._workers.close()
        self.engine.close()

    def _read(self, request: Request) -> _Job:
        parameters = read_parameters(request.parameters, self.engine.metadata)
        return _Job(read_request(request.inputs, self.engine.prepare, self.engine.metadata), parameters)

    def _predict(self, images: Sequence[Prepared], parameters: Parameters) -> Sequence[Result | Refusal]:
        """Results of a batch; if the engine fails on it, of its images one by one."""
        try:
            return self.engine.predict_prepared(
                [image.pixels for image in images], [image.size for image in images], *parameters
            )
        except Exception as error:
            if len(images) == 1:
                return [refusal(error, internal=True)]
        return [self._predict([image], parameters)[0] for image in images]

    def _outputs(self, pair: tuple[Result | Refusal, Collection[str]]) -> Answer:
        result, wanted = pair
        if isinstance(result, Refusal):
            return result
        facts = {"engine": self._facts} if "engine" in wanted else {}
        return {**answer(result, wanted), **facts}


def _batches(jobs: Sequence[_Job | Refusal], most: int) -> Iterator[tuple[Parameters, dict[int, Prepared]]]:
    """Images that go through the network together, by their positions: those with the same parameters."""
    groups: dict[Parameters, dict[int, Prepared]] = {}
    for position, job in enumerate(jobs):
        if isinstance(job, _Job):
            groups.setdefault(job.parameters, {})[position] = job.image
    for parameters, images in groups.items():
        rest = iter(images.items())
        while batch := dict(itertools.islice(rest, most)):
            yield parameters, batch


def _digest(metadata: Metadata) -> str:
    """A SHA-256 of what a model finds; when and with what it was written does not matter."""
    other = {"versions", "created", "command", "min_batch", "max_batch"}
    kept = {name: value for name, value in dataclasses.asdict(metadata).items() if name not in other}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


class PrepareService:
    """The step before a network that another backend runs: images in, its input out.

    Args:
        metadata: Of the network.
    """

    def __init__(self, metadata: Metadata) -> None:
        """Start the threads."""
        self._metadata, self._workers = metadata, Workers()

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """As `InstanceService.answer`; outputs are "images" (1, H, W, 3) and "size" (1, 2) int32."""
        return self._workers.each(self._prepare, requests)

    def close(self) -> None:
        """End the threads."""
        self._workers.close()

    def _prepare(self, request: Request) -> Answer:
        read_parameters(request.parameters, self._metadata)  # wrong ones are found before the network runs
        image = read_request(request.inputs, self._resized, self._metadata)
        return {INPUT: image.pixels[None], SIZE: np.array([image.size], np.int32)}

    def _resized(self, image: np.ndarray) -> np.ndarray:
        return resize_batch([image], self._metadata.input_shape, self._metadata.input_dtype)[0]


class ResultService:
    """The step after a network that another backend runs: its outputs in, instances out.

    Args:
        metadata: Of the network.
    """

    def __init__(self, metadata: Metadata) -> None:
        """Read the re-scoring network, if there is one."""
        self._metadata, self._workers = metadata, Workers()
        self._outputs = GraphOutputs(metadata, "the network")

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """As `InstanceService.answer`; inputs are the outputs of the network, and "size"."""
        return self._workers.each(self._finish, requests)

    def close(self) -> None:
        """End the threads."""
        self._workers.close()

    def _finish(self, request: Request) -> Answer:
        """The instances of one image."""
        meta = self._metadata
        parameters = read_parameters(request.parameters, meta)
        values = [request.inputs[name] for name in self._outputs.names]
        found = self._outputs.detections(values, parameters.classes)
        check_detections(found, 1, meta)
        result = result_of(
            found, 0, read_size(request.inputs[SIZE]), meta, parameters.score_threshold, parameters.top_k,
            copy=False, classes=parameters.classes,
        )  # fmt: skip
        return answer(result, request.outputs)
