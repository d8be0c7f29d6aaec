"""Requests over gRPC, with Triton's own protocol messages and stub."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from yolact_runtime.engines.remote.address import Address
from yolact_runtime.engines.remote.client import Client, ModelConfig, Unknown, refused_or_unavailable
from yolact_runtime.engines.remote.outage import Unavailable
from yolact_runtime.engines.remote.tensors import Tensor
from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.untrusted import beyond, limit

T = TypeVar("T")
_CODES = grpc.StatusCode
# The connection is lost, or the server does not take the request now.
_LATER = (_CODES.UNAVAILABLE, _CODES.CANCELLED, _CODES.ABORTED)


class GrpcClient(Client):
    """One connection, which all threads share.

    Args:
        address: Of the model.
        connect_timeout: Longest time to connect in seconds.
    """

    def __init__(self, address: Address, connect_timeout: float) -> None:
        self._address = address
        milliseconds = max(1, round(1000 * connect_timeout))
        options = [
            ("grpc.max_receive_message_length", limit("answer_bytes")),
            ("grpc.max_send_message_length", -1),
            # The library's own waiting between connections; an engine waits by itself, and longer.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", milliseconds),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # No other engine of this process may have set other limits for the same connection.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if address.encrypted:
            credentials = grpc.ssl_channel_credentials()
            self._channel = grpc.secure_channel(address.authority, credentials, options)
        else:
            self._channel = grpc.insecure_channel(address.authority, options)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._headers = []
        if address.credentials:
            secret = base64.b64encode(address.credentials.encode()).decode()
            self._headers.append(("authorization", f"Basic {secret}"))

    def config(self, seconds: float) -> ModelConfig:
        request = service_pb2.ModelConfigRequest(name=self._address.model, version=self._address.version)
        config = self._call(self._stub.ModelConfig, request, seconds).config
        parameters = {name: value.string_value for name, value in config.parameters.items()}
        return ModelConfig(parameters, frozenset(output.name for output in config.output))

    def infer(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        parameters: Mapping[str, str],
        seconds: float,
    ) -> dict[str, Tensor]:
        request = service_pb2.ModelInferRequest(
            model_name=self._address.model, model_version=self._address.version
        )
        for name, tensor in inputs.items():
            request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(tensor.data)
        for name in outputs:
            request.outputs.add(name=name)
        for name, text in parameters.items():
            request.parameters[name].string_param = text
        answer = self._call(self._stub.ModelInfer, request, seconds)
        if len(answer.raw_output_contents) != len(answer.outputs):
            raise YolactError("the server's answer lacks the values of an output")
        return {
            output.name: Tensor(output.datatype, tuple(output.shape), data)
            for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: Any, request: Any, seconds: float) -> Any:
        """Send a request.

        Raises:
            Unavailable: the server does not answer now.
            Unknown: it has no such model.
            YolactError: it refused the request.
        """
        try:
            return method(request, timeout=seconds, metadata=self._headers)
        except grpc.RpcError as error:
            raise _failure(error.code(), error.details() or "", seconds) from error
        except ValueError as error:  # of a channel that another thread closed
            raise YolactError(f"the engine was closed: {first_line(error)}") from error


def _failure(code: grpc.StatusCode, details: str, seconds: float) -> YolactError:
    """The error for a request that ended with a status."""
    # The library begins with what it tried; the system's reason comes last.
    reason = details.rpartition("Failed to connect to remote host: ")[2]
    reason = first_line(RuntimeError(reason)) if reason.strip() else code.name
    if "failed to connect" in details and "Socket closed" in details:
        return Unavailable("it closes each connection; is this the port of gRPC, or does it need grpcs://?")
    if code is _CODES.DEADLINE_EXCEEDED:
        return Unavailable(f"no answer within {seconds:g} s")
    if code is _CODES.NOT_FOUND:
        return Unknown(reason)
    larger = re.search(r"larger than max \(\d+ vs\. (\d+)\)", details)
    # Another limit is that of the server for what it is sent.
    if code is _CODES.RESOURCE_EXHAUSTED and larger and int(larger[1]) == limit("answer_bytes"):
        return YolactError(f"the server's answer has more bytes than {beyond('answer_bytes')}")
    if "CERTIFICATE_V" in details:
        return YolactError("its certificate is not trusted")
    if "http1.x" in details or "Failed parsing HTTP/2" in details:
        return YolactError(f"the server does not speak gRPC here; is this another port? ({reason})")
    lost = code in _LATER or (code is _CODES.INTERNAL and "RST_STREAM" in details)
    return Unavailable(reason) if lost and "unknown model" not in details else refused_or_unavailable(reason)
