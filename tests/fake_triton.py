"""A server in this process that speaks the protocol of Triton over HTTP and gRPC: `import fake_triton`.

It has one model, whose answers a test may replace, and it can be stopped and started on the same ports.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np

from yolact_runtime import Engine, Result

Values = dict[str, tuple[str, tuple[int, ...], bytes]]  # datatype, shape and data by name
_KINDS = {"UINT8": "u1", "FP32": "<f4", "INT32": "<i4"}


class RefusalError(Exception):
    """A request that is refused, with the status of HTTP."""

    def __init__(self, text: str, status: int = 500) -> None:
        super().__init__(text)
        self.status = status


class FakeTriton:
    """A server with the model `yolact`, which runs `engine`.

    Attributes:
        parameters: Of the model's configuration.
        change: Replaces the outputs of an answer.
        seen: The parameters of every request that was answered.
        headers: The authorization of every request.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        kept = {key: value for key, value in asdict(engine.metadata).items() if key != "mask_iou_net"}
        self.parameters = {"yolact": json.dumps(kept), "yolact_api": "1"}
        self.model = "0" * 64  # its digest
        self.outputs = ["rles", "engine"]  # of the configuration
        self.change: Callable[[Values], Values] = lambda values: values
        self.before: Callable[[], None] = lambda: None
        self.seen: list[dict[str, str]] = []
        self.authorizations: list[str] = []
        self.http_port = self.grpc_port = 0
        self._lock = threading.Lock()
        self._http: _Server | None = None
        self._grpc: Any = None

    def address(self, scheme: str = "http", model: str = "yolact") -> str:
        port = self.http_port if scheme == "http" else self.grpc_port
        return f"{scheme}://127.0.0.1:{port}/{model}"

    def start_http(self) -> FakeTriton:
        self._http = _Server(("127.0.0.1", self.http_port), _handler(self))
        self.http_port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def start_grpc(self) -> FakeTriton:
        from concurrent.futures import ThreadPoolExecutor

        import grpc

        self._grpc = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        _add_service(self, self._grpc)
        self.grpc_port = self._grpc.add_insecure_port(f"127.0.0.1:{self.grpc_port}")
        self._grpc.start()
        return self

    def stop(self) -> None:
        """End it and all connections at once."""
        if self._http:
            self._http.shutdown()
            self._http.server_close()
            self._http.cut()
        if self._grpc:
            self._grpc.stop(None).wait()
        self._http = self._grpc = None

    def __enter__(self) -> FakeTriton:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def configuration(self, model: str) -> dict[str, str]:
        if model != "yolact":
            raise RefusalError(f"Request for unknown model: '{model}' is not found", 404)
        return self.parameters

    def infer(self, model: str, inputs: Values, parameters: Mapping[str, str]) -> Values:
        self.configuration(model)
        self.before()
        result = self._result(inputs, parameters)
        with self._lock:
            self.seen.append(dict(parameters))
        return self.change(outputs_of(result, self.engine, self.model))

    def _result(self, inputs: Values, parameters: Mapping[str, str]) -> Result:
        chosen = json.loads(parameters["classes"]) if "classes" in parameters else None
        limits = float(parameters["score_threshold"]), int(parameters["top_k"])
        if "image" in inputs:
            data = np.frombuffer(inputs["image"][2][4:], np.uint8)
            image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
            if image is None:
                raise RefusalError("the image cannot be read: it is damaged\nTraceback")
            with self._lock:
                return self.engine.predict([image], *limits, chosen)[0]
        arrays = {
            name: np.frombuffer(data, _KINDS[kind]).reshape(shape[1:])
            for name, (kind, shape, data) in inputs.items()
        }
        height, width = arrays["size"].tolist()
        indices = self.engine.class_indices(chosen)
        with self._lock:
            return self.engine.predict_prepared([arrays["prepared"]], [(height, width)], *limits, indices)[0]


def outputs_of(result: Result, engine: Engine, model: str = "") -> Values:
    """The outputs for a result."""
    arrays = {
        "boxes": result.boxes_float,
        "relative_boxes": result.relative_boxes,
        "scores": result.scores,
        "mask_scores": result.mask_scores,
        "category_ids": result.category_ids,
        "areas": result.areas,
        "size": np.array([result.height, result.width], np.int32),
    }
    kinds = {"f": "FP32", "i": "INT64"}
    values: Values = {
        name: ("INT32" if name == "size" else kinds[array.dtype.kind], (1, *array.shape), array.tobytes())
        for name, array in arrays.items()
    }
    values["rles"] = texts([rle["counts"].encode() for rle in result.rles])
    about = {"engine": engine.name, "precision": engine.precision, "version": "0.0.0", "model": model}
    values["engine"] = texts([json.dumps(about).encode()])
    return values


def texts(values: list[bytes]) -> tuple[str, tuple[int, ...], bytes]:
    return "BYTES", (1, len(values)), b"".join(struct.pack("<I", len(one)) + one for one in values)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        self.connections: list[Any] = []
        super().__init__(*arguments)

    def get_request(self) -> Any:
        found = super().get_request()
        self.connections.append(found[0])
        return found

    def cut(self) -> None:
        for one in self.connections:
            self.shutdown_request(one)

    def handle_error(self, *arguments: object) -> None:
        pass  # a client that has gone


def _handler(server: FakeTriton) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(self._config)

        def do_POST(self) -> None:
            self._answer(self._infer)

        def _answer(self, work: Callable[[], tuple[bytes, bytes]]) -> None:
            server.authorizations.append(self.headers.get("Authorization", ""))
            status = 200
            try:
                text, binary = work()
            except RefusalError as error:
                text, binary, status = json.dumps({"error": str(error)}).encode(), b"", error.status
            self.send_response(status)
            self.send_header("Content-Length", str(len(text) + len(binary)))
            self.send_header("Inference-Header-Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text + binary)

        def _config(self) -> tuple[bytes, bytes]:
            found = server.configuration(self.path.split("/")[3])
            entries = {name: {"string_value": text} for name, text in found.items()}
            listed = [{"name": name} for name in server.outputs]
            config = {"name": "yolact", "parameters": entries, "output": listed}
            return json.dumps(config).encode(), b""

        def _infer(self) -> tuple[bytes, bytes]:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            start = int(self.headers["Inference-Header-Content-Length"])
            request = json.loads(body[:start])
            inputs: Values = {}
            for one in request["inputs"]:
                stop = start + one["parameters"]["binary_data_size"]
                inputs[one["name"]] = one["datatype"], tuple(one["shape"]), body[start:stop]
                start = stop
            values = server.infer(self.path.split("/")[3], inputs, request["parameters"])
            asked = [one["name"] for one in request["outputs"] if one["name"] in values]
            listed = [
                {
                    "name": name,
                    "datatype": values[name][0],
                    "shape": list(values[name][1]),
                    "parameters": {"binary_data_size": len(values[name][2])},
                }
                for name in asked
            ]
            return json.dumps({"outputs": listed}).encode(), b"".join(values[name][2] for name in asked)

    return Handler


def _add_service(server: FakeTriton, to: Any) -> None:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    def abort(context: Any, error: RefusalError) -> None:
        codes = grpc.StatusCode
        found = {404: codes.NOT_FOUND, 503: codes.UNAVAILABLE}.get(error.status, codes.INTERNAL)
        context.abort(found, str(error))

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's names
            server.authorizations.append(dict(context.invocation_metadata()).get("authorization", ""))
            answer = service_pb2.ModelConfigResponse()
            try:
                for name, text in server.configuration(request.name).items():
                    answer.config.parameters[name].string_value = text
            except RefusalError as error:
                abort(context, error)
            for name in server.outputs:
                answer.config.output.add(name=name)
            return answer

        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
            inputs = {
                one.name: (one.datatype, tuple(one.shape), data)
                for one, data in zip(request.inputs, request.raw_input_contents, strict=True)
            }
            parameters = {name: one.string_param for name, one in request.parameters.items()}
            try:
                values = server.infer(request.model_name, inputs, parameters)
            except RefusalError as error:
                abort(context, error)
            answer = service_pb2.ModelInferResponse()
            for one in request.outputs:
                if one.name in values:
                    kind, shape, data = values[one.name]
                    answer.outputs.add(name=one.name, datatype=kind, shape=shape)
                    answer.raw_output_contents.append(data)
            return answer

    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), to)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
