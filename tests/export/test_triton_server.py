"""The written repository in a real Triton server, asked with NVIDIA's own client."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from triton_server import VARIABLE, TritonServer, running_server

from yolact_export.triton import TritonOptions, write_repository
from yolact_runtime import Engine, Result, load_engine
from yolact_runtime.sources.images import read_image

http = pytest.importorskip("tritonclient.http")
grpc = pytest.importorskip("tritonclient.grpc")
from google.protobuf import text_format  # noqa: E402
from pycocotools import mask as coco_mask  # noqa: E402
from tritonclient.grpc import model_config_pb2 as schema  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

pytestmark = pytest.mark.skipif(
    not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no environment with nvidia-pytriton"
)
# Random weights find little with confidence.
LOW = {"score_threshold": "0.05"}
# The network of the ensemble: the wheel has no backend of ONNX Runtime, so Python runs the file with it.
FAKE_BACKEND = """
from pathlib import Path
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def execute(self, requests):
        images = [pb.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        values = self.session.run(self.names, {"images": np.concatenate(images)})
        rows = [[value[i : i + 1] for value in values] for i in range(len(requests))]
        named = [[pb.Tensor(*pair) for pair in zip(self.names, row)] for row in rows]
        return [
            pb.InferenceResponse([t if t.name() != "count" else pb.Tensor("count", t.as_numpy()[:, None])
                                  for t in row])
            for row in named
        ]
"""


@pytest.fixture(scope="module")
def model(graph: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("triton") / "m.onnx"
    onnx.save(graph, path)
    return path


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One server for all tests, with the model and the ensemble."""
    repository = model.parent / "repository"
    # Requests that are sent at the same time are in one batch, also where their threads are slow to start.
    options = TritonOptions(queue_delay_us=20_000, models="all")
    write_repository(model, repository, "m", options)
    _run_raw_in_python(repository / "m_raw")
    _set(repository / "m", engine_backend="onnxruntime", engine_threads="1")
    cache = tmp_path_factory.mktemp("cache")
    more = {"YOLACT_CACHE": str(cache), "YOLACT_MAX_PIXELS": "4000000"}
    with running_server(repository, env=more, threads=16) as running:
        yield running


def _run_raw_in_python(folder: Path) -> None:
    config = text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())
    config.backend, config.default_model_filename = "python", "model.py"
    for output in config.output:
        output.label_filename = ""
    del config.model_warmup[:]
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    (folder / "1" / "model.py").write_text(FAKE_BACKEND)


def _set(folder: Path, **parameters: str) -> None:
    """What a user edits in a configuration."""
    config = text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    with load_engine(model, backend="onnxruntime", threads=1) as opened:
        yield opened


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Any]:
    """Client and its module, for either protocol."""
    library: ModuleType = {"http": http, "grpc": grpc}[request.param]
    address = server.http if request.param == "http" else server.grpc
    opened = library.InferenceServerClient(address, **({"concurrency": 16} if library is http else {}))
    yield SimpleNamespace(module=library, client=opened)
    opened.close()


def infer(
    client: Any, inputs: dict[str, tuple[str, np.ndarray]], name: str = "m", outputs: Any = None, **more: Any
) -> Any:
    """The answer to a request; each input is Triton's type and an array."""
    tensors = []
    for key, (kind, array) in inputs.items():
        tensor = client.module.InferInput(key, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    asked = None if outputs is None else [client.module.InferRequestedOutput(output) for output in outputs]
    return client.client.infer(name, tensors, outputs=asked, parameters={**LOW, **more})


def encoded(data: bytes) -> dict[str, tuple[str, np.ndarray]]:
    return {"image": ("BYTES", np.array([[data]], object))}


def check(answer: Any, expected: Result) -> None:
    """An answer is the result of the plain pipeline, bit for bit."""
    arrays = {
        "boxes": expected.boxes_float,
        "relative_boxes": expected.relative_boxes,
        "scores": expected.scores,
        "mask_scores": expected.mask_scores,
        "category_ids": expected.category_ids,
        "areas": expected.areas,
        "size": np.array([expected.height, expected.width], np.int32),
    }
    for name, array in arrays.items():
        found = answer.as_numpy(name)[0]
        assert found.dtype == array.dtype and np.array_equal(found, array), name
    counts = [counts.decode() for counts in answer.as_numpy("rles")[0]]
    assert counts == [rle["counts"] for rle in expected.rles]


def expected_of(engine: Engine, path: Path, **more: Any) -> Result:
    return engine.predict([read_image(path)], **{"score_threshold": 0.05, **more})[0]


@pytest.mark.parametrize("name", ["m", "m_ensemble"])
def test_every_form_of_an_image_gives_the_results_of_the_plain_pipeline(
    client: Any, name: str, engine: Engine, photos: Path
) -> None:
    for path in sorted(photos.iterdir())[:2]:
        image, expected = read_image(path), expected_of(engine, path)
        assert len(expected)
        size = np.array([image.shape[:2]], np.int32)
        forms = [encoded(path.read_bytes()), {"array": ("UINT8", image[None])}]
        if name == "m":
            form = {"prepared": ("UINT8", engine.prepare(image)[None]), "size": ("INT32", size)}
            forms.append(form)
        for form in forms:
            check(infer(client, form, name), expected)


def test_masks_are_read_by_pycocotools(client: Any, engine: Engine, photos: Path) -> None:
    path = sorted(photos.iterdir())[0]
    answer = infer(client, encoded(path.read_bytes()))
    size = answer.as_numpy("size")[0].tolist()
    rles = [{"size": size, "counts": counts} for counts in answer.as_numpy("rles")[0]]
    masks = coco_mask.decode(rles).transpose(2, 0, 1)
    assert np.array_equal(masks.astype(bool), expected_of(engine, path).masks)
    assert masks.sum((1, 2)).tolist() == answer.as_numpy("areas")[0].tolist()


def test_the_client_of_the_documentation_needs_no_toolkit(
    server: TritonServer, engine: Engine, photos: Path, tmp_path: Path
) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "deploy-triton.md"
    blocks = re.findall("```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "client" in block]
    assert "yolact" not in code
    path = sorted(photos.iterdir())[0]
    shutil.copy(path, tmp_path / "photo.jpg")
    for old, new in (("localhost:8000", server.http), ('"shapes"', '"m"'), ('"0.3"', '"0.05"')):
        assert code.count(old) == 1
        code = code.replace(old, new)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    expected = expected_of(engine, path)
    found = [(line.split()[0], line.split()[-1]) for line in done.stdout.splitlines()]
    rows = zip(expected.category_ids, expected.masks.sum((1, 2)), strict=True)
    assert found == [(str(category), str(pixels)) for category, pixels in rows]


@pytest.mark.parametrize("name", ["m", "m_ensemble"])
def test_parameters_of_a_request(client: Any, name: str, engine: Engine, photos: Path) -> None:
    path = sorted(photos.iterdir())[0]
    names = engine.metadata.class_names
    expected = expected_of(engine, path)
    middle = float(np.median(expected.scores))
    image = encoded(path.read_bytes())
    check(infer(client, image, name, top_k=2), expected_of(engine, path, top_k=2))
    check(infer(client, image, name, top_k="3"), expected_of(engine, path, top_k=3))
    check(
        infer(client, image, name, score_threshold=str(middle)),
        expected_of(engine, path, score_threshold=middle),
    )
    some = [names[0], engine.metadata.category_ids[1]]
    check(infer(client, image, name, classes=json.dumps(some)), expected_of(engine, path, classes=some))
    text = f"{names[0]}, {names[2]}"
    check(infer(client, image, name, classes=text), expected_of(engine, path, classes=[names[0], names[2]]))
    nothing = infer(client, image, name, score_threshold="1")
    shapes = {key: nothing.as_numpy(key).shape for key in ("boxes", "scores", "rles", "areas")}
    assert shapes == {"boxes": (1, 0, 4), "scores": (1, 0), "rles": (1, 0), "areas": (1, 0)}


def test_an_answer_of_15_instances_has_at_most_20_kb(
    server: TritonServer, engine: Engine, photos: Path
) -> None:
    """The body of HTTP as it is on the wire, all outputs in it."""
    path = sorted(photos.iterdir())[0]
    body, size = http.InferenceServerClient.generate_request_body(_http_input(path), parameters=LOW)
    import urllib.request

    request = urllib.request.Request(
        f"http://{server.http}/v2/models/m/infer", body, {"Inference-Header-Content-Length": str(size)}
    )
    with urllib.request.urlopen(request) as answer:
        content = answer.read()
    assert len(expected_of(engine, path)) == 15
    assert len(content) <= 20_000


def _http_input(path: Path) -> list[Any]:
    tensor = http.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(encoded(path.read_bytes())["image"][1])
    return [tensor]


def test_a_client_gets_the_outputs_that_it_asks_for(client: Any, photos: Path) -> None:
    path = sorted(photos.iterdir())[0]
    answer = infer(client, encoded(path.read_bytes()), outputs=["scores"])
    assert answer.as_numpy("scores").size and answer.as_numpy("rles") is None
    facts = json.loads(infer(client, encoded(path.read_bytes()), outputs=["engine"]).as_numpy("engine")[0, 0])
    assert facts["engine"] == "ONNX Runtime CPU" and facts["precision"] == "fp32" and facts["version"]


def png_bomb(width: int, height: int) -> bytes:
    """A few bytes that say they are a large image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def small() -> dict[str, tuple[str, np.ndarray]]:
    return {"array": ("UINT8", np.zeros((1, 8, 8, 3), np.uint8))}


def prepared(height: int, width: int) -> dict[str, tuple[str, np.ndarray]]:
    return {
        "prepared": ("UINT8", np.zeros((1, 128, 128, 3), np.uint8)),
        "size": ("INT32", np.array([[height, width]], np.int32)),
    }


BAD: dict[str, tuple[dict[str, tuple[str, np.ndarray]], dict[str, Any], str]] = {
    "damaged": (encoded(b"\xff\xd8\xff no image"), {}, "image of the request is"),
    "empty": (encoded(b""), {}, "is empty"),
    "bomb": (encoded(png_bomb(60_000, 60_000)), {}, "60000 x 60000 pixels, more than"),
    "array too large": ({"array": ("UINT8", np.zeros((1, 1, 70_000, 3), np.uint8))}, {}, "70000 x 1"),
    "no pixels": ({"array": ("UINT8", np.zeros((1, 0, 8, 3), np.uint8))}, {}, "1 or more each are needed"),
    "wrong dtype": ({"array": ("FP32", np.zeros((1, 8, 8, 3), np.float32))}, {}, "data-type"),
    "wrong shape": ({"array": ("UINT8", np.zeros((1, 8, 8, 4), np.uint8))}, {}, "unexpected shape"),
    "two images": ({"image": ("BYTES", np.array([[b"a"], [b"b"]], object))}, {}, "image has 2 images"),
    "two forms": ({**encoded(b"a"), **small()}, {}, "has image and array"),
    "size alone": ({"size": ("INT32", np.array([[8, 8]], np.int32))}, {}, "this one has none"),
    "prepared alone": ({"prepared": prepared(8, 8)["prepared"]}, {}, "size is needed with prepared"),
    "size of billions": (prepared(2**31 - 1, 2**31 - 1), {}, "a side may have"),
    "size below 0": (prepared(-5, 8), {}, "1 or more each are needed"),
    "top_k": (small(), {"top_k": -1}, "top_k is -1"),
    "top_k as text": (small(), {"top_k": "9" * 5000}, "top_k is "),
    "threshold": (small(), {"score_threshold": "nan"}, "score_threshold is nan"),
    "yes": (small(), {"score_threshold": True}, "score_threshold is 'True'"),
    "class": (small(), {"classes": "unicorn"}, "no class 'unicorn'"),
    "not JSON": (small(), {"classes": '["a"'}, "not a JSON list"),
    "deep": (small(), {"classes": "[" * 50_000}, "not a JSON list"),
    "half a character": (small(), {"classes": '["\\ud800"]'}, "half a character"),
    "unknown": (small(), {"colour": "red"}, "unknown parameter 'colour'"),
}


@pytest.mark.parametrize(
    "name, kind",
    [("m", kind) for kind in BAD] + [("m_ensemble", kind) for kind in ("damaged", "bomb", "top_k", "class")],
)
def test_a_bad_request_is_an_error_of_one_line(client: Any, name: str, kind: str) -> None:
    inputs, parameters, words = BAD[kind]
    with pytest.raises(InferenceServerException) as error:
        infer(client, inputs, name, **parameters)
    message = str(error.value.message())
    assert words in message and "Traceback" not in message and "\nAt:" not in message
    assert "\n" not in message.strip()
    assert error.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_bad_requests_among_good_ones(client: Any, engine: Engine, photos: Path) -> None:
    """Those that the server puts into one batch do not affect each other."""
    paths = sorted(photos.iterdir())[:2]
    expected = [expected_of(engine, path) for path in paths]

    def send(number: int) -> Any:
        if number % 3 == 2:
            with pytest.raises(InferenceServerException, match="of the request is"):
                infer(client, encoded(b"no image"))
            return None
        # gRPC clients of Python are made for several threads, HTTP's are not.
        return infer(client, encoded(paths[number % 3].read_bytes()))

    if client.module is http:
        answers = [send(number) for number in range(6)]
    else:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(send, range(12)))
    for number, answer in enumerate(answers):
        if answer is not None:
            check(answer, expected[number % 3])


@pytest.mark.parametrize(
    "body",
    [
        # With a shape beyond the memory, this body ends Triton 24.10 itself, whichever model it is for.
        b'{"inputs": [{"name": "array", "shape": [1, 1000, 1000, 3], "datatype": "UINT8", "data": [1]}]}',
        b'{"inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": ["\xff\xfe"]}],'
        b' "parameters": {"classes": "\xff\xfe"}}',
        b'{"inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [[[1]]]}]}',
        b'{"inputs": [], "parameters": {"top_k": 1e999}}',
        b"[" * 100_000,
    ],
    ids=["shape beyond the data", "no UTF-8", "no text", "infinity", "deep"],
)
def test_hostile_bodies_are_refused_and_the_server_goes_on(
    server: TritonServer, body: bytes, engine: Engine, photos: Path
) -> None:
    import http.client

    connection = http.client.HTTPConnection(*server.http.split(":"), timeout=60)
    connection.request("POST", "/v2/models/m/infer", body)
    answer = connection.getresponse()
    assert 400 <= answer.status < 600
    assert b"Traceback" not in answer.read()
    connection.close()
    _check_alive(server, engine, photos)


@pytest.mark.parametrize("lengths", [(2**32 - 1,), (3,), (1000, 2)])
def test_texts_whose_length_is_wrong(
    server: TritonServer, lengths: tuple[int, ...], engine: Engine, photos: Path
) -> None:
    tensor = http.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"12345"]], object))
    tensor._raw_data = b"".join(struct.pack("<I", length) + b"12345" for length in lengths)
    tensor._parameters["binary_data_size"] = len(tensor._raw_data)
    connection = http.InferenceServerClient(server.http)
    with pytest.raises(InferenceServerException):
        connection.infer("m", [tensor])
    connection.close()
    _check_alive(server, engine, photos)


def _check_alive(server: TritonServer, engine: Engine, photos: Path) -> None:
    path = sorted(photos.iterdir())[0]
    connection = http.InferenceServerClient(server.http)
    answer = connection.infer("m", _http_input(path), parameters=LOW)
    connection.close()
    check(answer, expected_of(engine, path))


def test_the_server_makes_batches_of_concurrent_requests(
    server: TritonServer, engine: Engine, photos: Path
) -> None:
    """Images of different sizes and forms as well; results stay those of each image."""
    connection = grpc.InferenceServerClient(server.grpc)
    client = SimpleNamespace(module=grpc, client=connection)
    images = [
        cv2.resize(read_image(path), (60 + 10 * i, 90)) for i, path in enumerate(sorted(photos.iterdir()))
    ]
    expected = engine.predict(images, score_threshold=0.05)
    before = _statistics(connection)
    with ThreadPoolExecutor(len(images)) as pool:
        requests = [{"array": ("UINT8", image[None])} for image in images]
        answers = list(pool.map(lambda inputs: infer(client, inputs), requests))
    after = _statistics(connection)
    connection.close()
    assert after[0] - before[0] == len(images)
    assert after[1] - before[1] < len(images)  # fewer calls than images
    assert after[2] > 1
    for answer, result in zip(answers, expected, strict=True):
        check(answer, result)


def _statistics(connection: Any) -> tuple[int, int, int]:
    """Images, calls, and the largest batch so far."""
    found = connection.get_inference_statistics("m", as_json=True)["model_stats"][0]
    sizes = [int(entry.get("batch_size", 0)) for entry in found["batch_stats"]]
    return int(found["inference_count"]), int(found["execution_count"]), max(sizes)


WRONG = {
    "typo": ({"engine_thread": "2"}, "unknown parameter engine_thread; near ones: engine_threads"),
    "number": ({"engine_threads": "many"}, "engine_threads is 'many'; a whole number or auto is needed"),
    "backend": ({"engine_backend": "tea"}, "backend 'tea'; allowed: onnxruntime"),
    "version": ({"yolact_api": "7"}, "has version 7 of the inputs and outputs"),
}


@pytest.mark.slow
def test_a_wrong_configuration_is_reported_in_the_log(model: Path, tmp_path: Path) -> None:
    for name, (parameters, _) in WRONG.items():
        _set(write_repository(model, tmp_path / "repository", name), **parameters)
    with running_server(tmp_path / "repository", ["--exit-on-error=false"], ready=False) as running:
        connection = http.InferenceServerClient(running.http)
        reasons = {entry["name"]: entry["reason"] for entry in connection.get_model_repository_index()}
        connection.close()
        for name, (_, words) in WRONG.items():
            assert words in reasons[name] and words in running.log
