"""`RemoteEngine`: a model on a Triton server."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import NoReturn, TypeVar

import numpy as np

from yolact_runtime.detections import Detections
from yolact_runtime.engines.backends import UNKNOWN
from yolact_runtime.engines.base import Engine, check_limits
from yolact_runtime.engines.remote.address import Address
from yolact_runtime.engines.remote.answers import (
    OUTPUTS,
    Request,
    ServerEngine,
    read_metadata,
    read_result,
    read_server_engine,
    same_model,
)
from yolact_runtime.engines.remote.client import Client, Unknown
from yolact_runtime.engines.remote.outage import Outage, Unavailable
from yolact_runtime.engines.remote.tensors import Tensor, tensor_of, tensor_of_bytes
from yolact_runtime.engines.threads import AUTO
from yolact_runtime.errors import EngineUnavailableError, UsageError, YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.packages import require
from yolact_runtime.results import Result

log = logging.getLogger(__name__)
T = TypeVar("T")

# Requests in flight unless another number of streams is asked for; the server makes batches of them.
CONCURRENT = 8
# How long a server may be away, in seconds: at the beginning, where the address may be wrong, and later.
OPENING, RUNNING = 10.0, 120.0


class RemoteEngine(Engine):
    """Sends each image to a server, resized, and gets its instances.

    A request that is not answered is sent again, so that a server may be started again during a run.

    Args:
        address: Of the model that `yolact-export --to triton` wrote.
        streams: Requests in flight; "auto" for 8. A batch is sent as one request for each of its images.
        timeout: Longest time for the answer to a request, in seconds.
        connect_timeout: Longest time to connect to the server, in seconds.
        retries: How often a request is sent again; None for as often as there is time.
        retry_seconds: How long the server may be away. None for 10 seconds at the beginning, 120 later.

    Raises:
        UsageError: another kind of model, or of another version of the toolkit; a number out of its range.
        YolactError: the server is not there, refuses, or says what cannot be right.
    """

    remote = True

    def __init__(
        self,
        address: Address,
        streams: int | str = AUTO,
        timeout: float = 60.0,
        connect_timeout: float = 10.0,
        retries: int | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        check_patience(timeout, connect_timeout, retries, retry_seconds)
        self.address = address
        self.streams = CONCURRENT if isinstance(streams, str) else streams
        self._timeout, self._closed = timeout, threading.Event()
        self._other: EngineUnavailableError | None = None  # why it cannot go on
        in_flight = max(self.streams, CONCURRENT)
        self._pool = ThreadPoolExecutor(in_flight, "request")
        self._client = _open_client(address, connect_timeout)
        self._outage = Outage(str(address), OPENING if retry_seconds is None else retry_seconds, retries)
        try:
            served = self._send(self._read_metadata)
            self.metadata = dataclasses.replace(served, min_batch=1, max_batch=in_flight)
            self._server = self._send(self._read_engine)
        except Unknown as error:
            self.close()
            raise YolactError(f"{address}: the server has no such model: {error}") from error
        except YolactError as error:
            self.close()
            raise _named(error, address) from error
        except BaseException:
            self.close()
            raise
        self._served: Metadata | None = served
        self._outage = Outage(str(address), RUNNING if retry_seconds is None else retry_seconds, retries)
        if self._server.precision == UNKNOWN:
            self.unknown_because = "the server does not know it either"

    @property
    def name(self) -> str:
        return f"Triton, {self._server.engine}"

    @property
    def precision(self) -> str:
        return self._server.precision

    @property
    def server_version(self) -> str:
        """The version of this toolkit on the server."""
        return self._server.version

    @property
    def retried(self) -> int:
        """How often a request was sent again, because it was not answered."""
        return self._outage.retried

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        """Refused: a server returns instances, not the network's outputs."""
        raise UsageError(
            f"{self.address} returns instances; the network's outputs come from a file: load_engine(path)"
        )

    def predict_prepared(
        self,
        prepared: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        top_k: int,
        classes: frozenset[int] | None = None,
    ) -> list[Result]:
        def result(image: np.ndarray, size: tuple[int, int]) -> Result:
            inputs = {"prepared": tensor_of(image), "size": tensor_of(np.array(size, np.int32))}
            return self._result(inputs, Request(score_threshold, top_k, classes, size))

        with self.timed("network"):
            if len(prepared) == 1:
                return [result(prepared[0], sizes[0])]
            return self._concurrently(result, prepared, sizes)

    def predict_encoded(
        self,
        images: Sequence[bytes],
        score_threshold: float = 0.15,
        top_k: int = 15,
        classes: Sequence[str | int] | None = None,
    ) -> list[Result]:
        """Find the instances in encoded images, which the server decodes and resizes.

        Args:
            images: The contents of image files.
            score_threshold, top_k, classes: As for `predict`.

        Raises:
            YolactError: the server cannot read an image.
        """
        check_limits(score_threshold, top_k)
        request = Request(score_threshold, top_k, self.class_indices(classes))

        def result(data: bytes) -> Result:
            return self._result({"image": tensor_of_bytes(data)}, request)

        return [result(images[0])] if len(images) == 1 else self._concurrently(result, images)

    def close(self) -> None:
        self._closed.set()  # wakes threads that wait to send again
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            f"{type(self).__name__} cannot be pickled or copied; open it in each process:"
            f" load_engine({str(self.address)!r})"
        )

    def _concurrently(self, call: Callable[..., Result], *arguments: Sequence[object]) -> list[Result]:
        """The results of calls with each of the arguments, in their order."""
        try:
            return list(self._pool.map(call, *arguments))
        except (RuntimeError, CancelledError) as error:  # of a pool that was shut down
            raise YolactError("the engine was closed") from error

    def _result(self, inputs: Mapping[str, Tensor], request: Request) -> Result:
        """The result of one image, which is sent until it is answered."""

        def send() -> Result:
            limits = request.score_threshold, min(request.top_k, self.metadata.max_detections)
            answer = self._infer(inputs, OUTPUTS, *limits, request.classes)
            if read_server_engine(answer).model != self._server.model:
                self._refuse_other()
            return read_result(answer, self.metadata, request)

        return self._send(send)

    def _infer(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        score_threshold: float,
        top_k: int,
        classes: frozenset[int] | None = None,
    ) -> dict[str, Tensor]:
        """The outputs of one request, which is sent once."""
        parameters = {"score_threshold": repr(float(score_threshold)), "top_k": str(int(top_k))}
        if classes is not None:
            parameters["classes"] = json.dumps(sorted(self.metadata.category_ids[index] for index in classes))
        return self._client.infer(inputs, outputs, parameters, self._timeout)

    def _send(self, call: Callable[[], T]) -> T:
        """Make a call until it is answered.

        Raises:
            EngineUnavailableError: the server is away for too long, or has come back with another model.
            YolactError: the server refused, or the engine was closed.
        """
        attempt, known = 0, getattr(self, "_served", None)
        first: float | None = None
        while not self._closed.is_set():
            if self._other is not None:
                raise EngineUnavailableError(str(self._other)) from self._other
            try:
                if known is not None and (attempt or self._outage.lasts):
                    self._check_same(known)
                answer = call()
            except Unavailable as error:
                if isinstance(error, Unknown) and known is None:
                    raise
                attempt += 1
                seconds = self._outage.wait_after(error, attempt, first)
                first = time.monotonic() if first is None else first  # not before the outage began
                self._closed.wait(seconds)
            except EngineUnavailableError:
                raise
            except YolactError:
                self._outage.end()
                raise
            else:
                self._outage.end()
                return answer
        raise YolactError("the engine was closed")

    def _check_same(self, known: Metadata) -> None:
        """Raise an EngineUnavailableError if the server has another model than before."""
        if not same_model(known, self._read_metadata()):
            self._refuse_other()

    def _refuse_other(self) -> NoReturn:
        self._other = EngineUnavailableError(
            f"{self.address} came back with another model; start again, so that all results are of one"
        )
        raise self._other

    def _read_metadata(self) -> Metadata:
        return read_metadata(self._client.config(self._timeout), self.address)

    def _read_engine(self) -> ServerEngine:
        """What computes on the server, asked with a request in which nothing is found."""
        shape = self.metadata.input_shape
        image = np.zeros((*shape, 3), self.metadata.input_dtype)
        blank = {"prepared": tensor_of(image), "size": tensor_of(np.array(shape, np.int32))}
        return read_server_engine(self._infer(blank, ["engine"], 1, 1))


def _open_client(address: Address, connect_timeout: float) -> Client:
    """The client of an address's scheme, which has not connected yet."""
    if address.scheme.startswith("http"):
        from yolact_runtime.engines.remote.http_client import HttpClient

        return HttpClient(address, connect_timeout)
    # Its library reports the end of a connection, which the engine does as well.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    require("an engine at grpc://", "triton", "tritonclient", "grpc")
    from yolact_runtime.engines.remote.grpc_client import GrpcClient

    return GrpcClient(address, connect_timeout)


def _named(error: YolactError, address: Address) -> YolactError:
    """An error whose text names the address."""
    text = str(error)
    return error if str(address) in text else type(error)(f"{address}: {text}")


def check_patience(
    timeout: float, connect_timeout: float, retries: int | None, retry_seconds: float | None
) -> None:
    """Raise a UsageError if a limit of `RemoteEngine` is out of its range."""
    seconds = {"timeout": timeout, "connect_timeout": connect_timeout, "retry_seconds": retry_seconds}
    for name, value in seconds.items():
        low = 0.0 if name == "retry_seconds" else 0.001
        if value is not None and not low <= value <= 86_400:
            raise UsageError(f"{name} is {value}; it must be {low:g} to 86400 seconds")
    if retries is not None and not 0 <= retries <= 1_000_000:
        raise UsageError(f"retries is {retries}; it must be in 0..1000000")
