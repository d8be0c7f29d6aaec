"""Requests over HTTP: the binary form of KServe's second inference protocol.

`tritonclient.http` has no limit on the size or the total time of an answer, is for one thread, and installs
gevent. So the standard library sends the requests.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import math
import socket
import ssl
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yolact_runtime.engines.remote.address import Address
from yolact_runtime.engines.remote.client import Client, ModelConfig, Unknown, refused_or_unavailable
from yolact_runtime.engines.remote.outage import Unavailable
from yolact_runtime.engines.remote.tensors import Tensor
from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.untrusted import beyond, limit, parse_json

# Statuses of a server, or of what is before it, that may answer later.
_LATER = (429, 502, 503, 504)
_HEADER = "Inference-Header-Content-Length"


class HttpClient(Client):
    """A connection for each thread that sends requests.

    Args:
        address: Of the model.
        connect_timeout: Longest time to connect in seconds.
    """

    def __init__(self, address: Address, connect_timeout: float) -> None:
        self._address, self._connect_timeout = address, connect_timeout
        version = f"/versions/{address.version}" if address.version else ""
        self._path = f"/v2/models/{address.model}{version}"
        self._headers = {}
        if address.credentials:
            secret = base64.b64encode(address.credentials.encode()).decode()
            self._headers["Authorization"] = f"Basic {secret}"
        self._tls = ssl.create_default_context() if address.encrypted else None
        self._own = threading.local()
        self._open: weakref.WeakSet[http.client.HTTPConnection] = weakref.WeakSet()  # ends with its thread
        self._lock = threading.Lock()
        self._closed = False

    def config(self, seconds: float) -> ModelConfig:
        _, content = self._exchange("GET", "/config", b"", {}, seconds)
        found = _json(content)
        parameters, outputs = found.get("parameters"), found.get("output")
        entries = parameters.items() if isinstance(parameters, dict) else ()
        values = {name: value.get("string_value") for name, value in entries if isinstance(value, dict)}
        listed = outputs if isinstance(outputs, list) else ()
        return ModelConfig(
            {name: text for name, text in values.items() if isinstance(text, str)},
            frozenset(str(output.get("name")) for output in listed if isinstance(output, dict)),
        )

    def infer(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        parameters: Mapping[str, str],
        seconds: float,
    ) -> dict[str, Tensor]:
        header = {
            "parameters": dict(parameters),
            "inputs": [
                {
                    "name": name,
                    "datatype": tensor.datatype,
                    "shape": list(tensor.shape),
                    "parameters": {"binary_data_size": len(tensor.data)},
                }
                for name, tensor in inputs.items()
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
        }
        text = json.dumps(header).encode()
        body = b"".join([text, *(tensor.data for tensor in inputs.values())])
        headers = {"Content-Type": "application/octet-stream", _HEADER: str(len(text))}
        size, content = self._exchange("POST", "/infer", body, headers, seconds)
        return _read_outputs(content, size)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for connection in self._open:
                if connection.sock is not None:
                    _shut(connection.sock)

    def _exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], seconds: float
    ) -> tuple[str | None, bytes]:
        """Send a request; returns the length of the answer's JSON as its header says, and the answer."""
        try:
            try:
                answer = self._send(method, path, body, headers, seconds)
            except ConnectionError:
                if not self._own.used:
                    raise
                # The server had closed the connection since the last request.
                answer = self._send(method, path, body, headers, seconds)
        except TimeoutError:
            raise Unavailable(f"no answer within {seconds:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise YolactError(f"its certificate is not trusted: {first_line(error)}") from error
        except OSError as error:
            raise Unavailable(str(error.strerror or first_line(error))) from error
        except http.client.IncompleteRead as error:
            raise Unavailable("the answer ends too early") from error
        except http.client.HTTPException as error:
            raise YolactError(
                f"the server does not speak HTTP/1.1 ({type(error).__name__}); is this the port of gRPC?"
            ) from error
        status, size, content = answer
        if status != 200:
            raise _failure(status, content)
        return size, content

    def _send(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], seconds: float
    ) -> tuple[int, str | None, bytes]:
        """Send a request on this thread's connection; returns status, length of the JSON, and content."""
        connection = self._connection()
        self._own.used = connection.sock is not None
        whole = False
        try:
            if connection.sock is None:
                connection.timeout = min(self._connect_timeout, seconds)
                connection.connect()
                if self._closed:  # while it connected, when there was nothing to shut
                    raise YolactError("the engine was closed")
            with _deadline(connection.sock, seconds):
                connection.request(method, self._path + path, body, {**self._headers, **headers})
                response = connection.getresponse()
                content = response.read(limit("answer_bytes") + 1)
            if len(content) > limit("answer_bytes"):
                raise YolactError(f"the server's answer has more bytes than {beyond('answer_bytes')}")
            if response.length:  # of what is still missing
                raise http.client.IncompleteRead(b"")
            whole = response.isclosed()
            return response.status, response.headers.get(_HEADER), content
        finally:
            if not whole:
                connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        """The connection of this thread, open or not."""
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            where = self._address.host, self._address.port
            connection = (
                http.client.HTTPConnection(*where)
                if self._tls is None
                else http.client.HTTPSConnection(*where, context=self._tls)
            )
            self._own.connection = connection
            with self._lock:
                self._open.add(connection)
        if self._closed:
            raise YolactError("the engine was closed")
        return connection


@contextlib.contextmanager
def _deadline(sock: socket.socket, seconds: float) -> Iterator[None]:
    """End a connection after some seconds in all: its own timeout begins again with each byte."""
    late = threading.Event()

    def end() -> None:
        late.set()
        _shut(sock)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    sock.settimeout(seconds + 1)
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if late.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError


def _shut(sock: socket.socket) -> None:
    """Wake a thread that waits on a socket."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # that of TLS would end its own state as well


def _failure(status: int, content: bytes) -> YolactError:
    """The error for an answer with another status than 200."""
    try:
        message = _json(content).get("error")
    except YolactError:
        message = None
    reason = message if isinstance(message, str) and message else f"HTTP status {status}"
    if status in _LATER and "unknown model" not in reason:
        return Unavailable(first_line(RuntimeError(reason)))
    return Unknown(first_line(RuntimeError(reason))) if status == 404 else refused_or_unavailable(reason)


def _json(content: bytes) -> dict[str, Any]:
    """The object of an answer.

    Raises:
        YolactError: it is something else.
    """
    try:
        value = parse_json(content)
    except ValueError as error:
        raise YolactError(f"the server's answer is not JSON: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise YolactError("the server's answer is no JSON object")
    return value


def _read_outputs(content: bytes, size: str | None) -> dict[str, Tensor]:
    """The outputs of an answer, whose values follow its JSON of `size` bytes.

    Raises:
        YolactError: they do not fit each other.
    """
    damaged = YolactError("the server's answer cannot be read; is the port that of a Triton server?")
    if size is not None and not (size.isascii() and size.isdecimal() and len(size) < 10):
        raise damaged
    start = len(content) if size is None else int(size)
    if start > len(content):
        raise damaged
    found = {}
    listed = _json(content[:start]).get("outputs")
    for output in listed if isinstance(listed, list) else ():
        entry = output if isinstance(output, dict) else {}
        shape, more = entry.get("shape"), entry.get("parameters")
        if not isinstance(shape, list) or not all(type(side) is int and 0 <= side < 2**40 for side in shape):
            raise damaged
        length = more.get("binary_data_size") if isinstance(more, dict) else None
        if length is None and math.prod(shape) == 0:
            length = 0
        if type(length) is not int or not 0 <= length <= len(content) - start:
            raise damaged
        data = content[start : start + length]
        found[str(entry.get("name"))] = Tensor(str(entry.get("datatype")), tuple(shape), data)
        start += length
    if start != len(content):
        raise damaged
    return found
