"""`RemoteEngine` with a server in this process: same results, lost servers, other models, hostile answers."""

from __future__ import annotations

import json
import logging
import math
import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from fake_engine import BlobEngine
from fake_triton import FakeTriton, RefusalError, Values, texts, wait_for

from yolact_runtime import Detections, Engine, Result, YolactError, load_engine, tiled
from yolact_runtime.engines.remote import outage
from yolact_runtime.errors import EngineUnavailableError, UsageError

SCHEMES = ["http", pytest.param("grpc", marks=pytest.mark.filterwarnings("ignore"))]
RNG = np.random.default_rng(0)
IMAGES = [
    cv2.resize(RNG.integers(0, 256, (5, 7, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    for height, width in ((40, 60), (64, 64), (33, 91), (120, 50), (64, 100))
]


class Blobs(BlobEngine):
    """Finds other blobs in each image, and may be asked for some classes."""

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        return super().detect(batch)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST", 0.02)


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    with FakeTriton(Blobs()) as server:
        yield server


def start(server: FakeTriton, scheme: str) -> str:
    """Start it, and return the address of its model."""
    if scheme == "http":
        return server.start_http().address("http")
    pytest.importorskip("tritonclient.grpc")
    return server.start_grpc().address("grpc")


def plain(result: Result) -> tuple[Any, ...]:
    """All that a user gets, comparable to the bit."""
    arrays = result.boxes_float, result.scores, result.mask_scores, result.category_ids, result.areas
    size = result.height, result.width
    return (*size, result.rles, *(one.tobytes() for one in arrays), result.to_coco(1, polygons=True))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_results_are_those_of_the_engine(server: FakeTriton, scheme: str) -> None:
    local = server.engine
    with load_engine(start(server, scheme)) as engine:
        assert engine.metadata.class_names == local.metadata.class_names
        assert engine.precision == "fp32" and local.name in engine.name and engine.remote
        for limits in ({}, {"score_threshold": 0.5, "top_k": 3}, {"score_threshold": 0.0, "top_k": 500}):
            for classes in (None, ["cat"], ["traffic light", 7]):
                found = engine.predict(IMAGES, **limits, classes=classes)
                expected = local.predict(IMAGES, **limits, classes=classes)
                assert list(map(plain, found)) == list(map(plain, expected))
        assert all(len(one) for one in found)
        assert [len(one) for one in engine.predict(IMAGES[:1], score_threshold=1)] == [0]
        one = engine.predict(IMAGES[:1])[0]
        assert (one.masks == local.predict(IMAGES[:1])[0].masks).all()
        assert (one.draw(IMAGES[0]) == local.predict(IMAGES[:1])[0].draw(IMAGES[0])).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tiles(server: FakeTriton, scheme: str) -> None:
    with tiled(load_engine(start(server, scheme)), 50) as engine, tiled(Blobs(), 50) as local:
        assert list(map(plain, engine.predict(IMAGES))) == list(map(plain, local.predict(IMAGES)))


def test_encoded_images_are_decoded_by_the_server(server: FakeTriton) -> None:
    pngs = [cv2.imencode(".png", image)[1].tobytes() for image in IMAGES]
    with load_engine(start(server, "http")) as engine:
        found = engine.predict_encoded(pngs, 0.2, 5, ["cat"])
        assert list(map(plain, found)) == list(map(plain, server.engine.predict(IMAGES, 0.2, 5, ["cat"])))
        with pytest.raises(YolactError, match=r"answers: the image cannot be read: it is damaged$"):
            engine.predict_encoded([b""])


def test_requests_are_bounded_and_concurrent(server: FakeTriton) -> None:
    """A batch of 20 has `streams` requests in flight, never more."""
    most, now, lock, several = 0, 0, threading.Lock(), threading.Event()

    def before() -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
            if now == 5:
                several.set()
        several.wait(20)
        time.sleep(0.01)
        with lock:
            now -= 1

    address = start(server, "http")
    with load_engine(address, streams=10) as engine:
        server.before = before
        assert (engine.streams, engine.metadata.min_batch, engine.metadata.max_batch) == (10, 1, 10)
        engine.predict(IMAGES * 4)
    assert 5 <= most <= 10
    with load_engine(address, streams="auto") as engine:
        assert engine.streams == 8


def test_what_is_refused(server: FakeTriton) -> None:
    address = start(server, "http")
    with load_engine(address) as engine:
        with pytest.raises(UsageError, match="returns instances"):
            engine.detect(np.zeros((1, 64, 64, 3), np.uint8))
        with pytest.raises(UsageError, match=r"load_engine\('http://127"):
            pickle.dumps(engine)
        with pytest.raises(UsageError, match="no class"):
            engine.predict(IMAGES, classes=["horse"])
    with pytest.raises(YolactError, match="closed"):
        engine.predict(IMAGES[:1])
    with pytest.raises(YolactError, match="closed"):
        engine.predict(IMAGES)
    with pytest.raises(UsageError, match="precision int8 was asked for, and it is fp32"):
        load_engine(address, precision="int8")
    with pytest.raises(UsageError, match="input is 64, and 32x64 was asked for"):
        load_engine(address, input_size=(32, 64))
    load_engine(address, precision="fp32", input_size=64).close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_other_models(server: FakeTriton, scheme: str) -> None:
    address = start(server, scheme)
    began = time.monotonic()
    with pytest.raises(YolactError, match="no such model: Request for unknown model"):
        load_engine(address.replace("/yolact", "/yolo"))
    assert time.monotonic() - began < 60  # without waiting for 120 s
    good = dict(server.parameters)
    for parameters, text in (
        ({}, "is not a model that yolact-export --to triton wrote"),
        ({"yolact": good["yolact"]}, "is the plain network"),
        ({**good, "yolact_api": "2\n"}, r"has version 2\\n of the inputs and outputs"),
    ):
        server.parameters = parameters
        with pytest.raises(UsageError, match=text):
            load_engine(address)
    server.parameters, server.outputs = good, ["rles", "boxes"]
    with pytest.raises(UsageError, match="an ensemble or a step of it"):
        load_engine(address)


def test_credentials(server: FakeTriton, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    address = start(server, "http").replace("://", "://ann:s%40cret@")
    with load_engine(address) as engine:
        engine.predict(IMAGES[:1])
    server.stop()
    with pytest.raises(EngineUnavailableError) as error:
        load_engine(address, retry_seconds=0)
    assert set(server.authorizations) == {"Basic YW5uOnNAY3JldA=="}  # ann:s@cret
    assert "cret" not in f"{caplog.text} {error.value}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_credentials_over_grpc(server: FakeTriton, scheme: str) -> None:
    load_engine(start(server, scheme).replace("://", "://ann:x@")).close()
    assert server.authorizations[0] == "Basic YW5uOng="


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_is_started_again(
    server: FakeTriton, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with load_engine(start(server, scheme)) as engine:
        expected = list(map(plain, engine.predict(IMAGES)))
        caplog.clear()
        # Killed in the middle of a request, and away for a while.
        entered, go = threading.Event(), threading.Event()
        server.before = lambda: (entered.set(), go.wait(60))[0]
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.extend(engine.predict(IMAGES)))
        thread.start()
        assert entered.wait(60)
        server.stop()
        server.before = lambda: None
        wait_for(lambda: "trying again" in caplog.text)
        go.set()
        start(server, scheme)
        thread.join(60)
        assert list(map(plain, found)) == expected
        assert caplog.text.count("trying again for up to 120 s") == 1  # of all requests in flight
        assert " is back after" in caplog.text and engine.retried >= 1
        caplog.clear()
        engine.predict(IMAGES)
        assert "WARNING" not in caplog.text


def test_a_connection_that_the_server_closed_is_opened_again(
    server: FakeTriton, caplog: pytest.LogCaptureFixture
) -> None:
    with load_engine(start(server, "http")) as engine:
        engine.predict(IMAGES[:1])
        server._http.cut()
        engine.predict(IMAGES[:1])
        assert engine.retried == 0 and "WARNING" not in caplog.text


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_stays_away(server: FakeTriton, scheme: str) -> None:
    with load_engine(start(server, scheme), retry_seconds=0.5) as engine:
        server.stop()
        began = time.monotonic()
        with pytest.raises(EngineUnavailableError, match=r"did not answer \d+ attempts in \d+ s: .*refused"):
            engine.predict(IMAGES)
        assert 0.4 < time.monotonic() - began < 60  # not the 120 s of a default
        # Once only, from now on.
        with pytest.raises(EngineUnavailableError, match="1 attempt "):
            engine.predict(IMAGES[:1])
        start(server, scheme)
        wait_for(lambda: answers(engine))  # gRPC opens no connection within a second of the last attempt
    with load_engine(server.address(scheme), retries=0) as engine:
        server.stop()
        with pytest.raises(EngineUnavailableError, match="1 attempt in 0 s"):
            engine.predict(IMAGES[:1])


def answers(engine: Engine) -> bool:
    """Whether a request is answered."""
    try:
        return bool(engine.predict(IMAGES[:1]))
    except EngineUnavailableError:
        return False


def test_closing_ends_the_waiting(server: FakeTriton) -> None:
    engine = load_engine(start(server, "http"))
    server.stop()
    threading.Timer(0.3, engine.close).start()
    began = time.monotonic()
    with pytest.raises(YolactError, match="closed"):
        engine.predict(IMAGES)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_with_another_model_after_it(server: FakeTriton, scheme: str) -> None:
    """A run never mixes the results of two models."""
    with load_engine(start(server, scheme)) as engine:
        server.stop()
        content = json.loads(server.parameters["yolact"])
        server.parameters["yolact"] = json.dumps({**content, "created": "2030", "max_batch": 4})
        start(server, scheme)
        engine.predict(IMAGES[:1])  # the same model, written again
        server.stop()
        server.parameters["yolact"] = json.dumps({**content, "weights_sha256": "0" * 64})
        threading.Timer(0.2, start, (server, scheme)).start()
        for _ in range(2):  # it does not go on with the other one
            with pytest.raises(EngineUnavailableError, match="came back with another model"):
                engine.predict(IMAGES)


def test_a_model_that_is_exchanged_between_requests(server: FakeTriton) -> None:
    with load_engine(start(server, "http")) as engine:
        engine.predict(IMAGES[:1])
        server.model = "1" * 64
        for _ in range(2):
            with pytest.raises(EngineUnavailableError, match="came back with another model"):
                engine.predict(IMAGES[:1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_that_is_not_loaded_yet_is_waited_for(server: FakeTriton, scheme: str) -> None:
    with load_engine(start(server, scheme)) as engine:
        known, calls = server.configuration, 0

        def configuration(model: str) -> dict[str, str]:
            nonlocal calls
            calls += 1
            if calls < 4:
                raise RefusalError(
                    "Request for unknown model: 'yolact' is not found", 404 if calls < 3 else 503
                )
            return known(model)

        server.configuration = configuration
        assert engine.predict(IMAGES[:1])
        server.change = lambda values: (_ for _ in ()).throw(
            RefusalError("Failed to process the request: Stub process 'yolact_0_0' is not healthy.")
        )
        threading.Timer(0.3, lambda: setattr(server, "change", lambda values: values)).start()
        assert engine.predict(IMAGES[:1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_request_that_takes_too_long(server: FakeTriton, scheme: str) -> None:
    with load_engine(start(server, scheme), timeout=2, retries=1) as engine:
        server.before = lambda: time.sleep(3)
        with pytest.raises(EngineUnavailableError, match=r"2 attempts in .* no answer within 2 s"):
            engine.predict(IMAGES[:1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_error_of_one_request_is_not_sent_again(server: FakeTriton, scheme: str) -> None:
    with load_engine(start(server, scheme)) as engine:

        def change(values: Values) -> Values:
            raise RefusalError("the image\x1b[31m is wrong\nTraceback (most recent call last)")

        server.change = change
        server.seen.clear()
        with pytest.raises(YolactError, match=r"the server answers: the image\\x1b\[31m is wrong$") as error:
            engine.predict(IMAGES[:1])
        assert not isinstance(error.value, EngineUnavailableError)
        assert len(server.seen) == 1 and engine.retried == 0


def altered(name: str, value: Any) -> Callable[[Values], Values]:
    """Outputs with one of them replaced, by another one or by a function of it; None leaves it out."""

    def change(values: Values) -> Values:
        new = value(*values[name]) if callable(value) else value
        return {key: one for key, one in {**values, name: new}.items() if one is not None}

    return change


def floats(values: Any) -> bytes:
    return np.array(values, np.float32).tobytes()


HOSTILE = {
    "missing": (altered("rles", None), "lacks rles"),
    "type": (altered("scores", lambda kind, shape, data: ("FP64", shape, data)), "scores is FP64"),
    "long type": (altered("scores", lambda kind, shape, data: ("X" * 10**6, shape, data)), "scores is X+ "),
    "flat": (altered("scores", lambda kind, shape, data: (kind, shape[1:], data)), "scores are"),
    "negative": (altered("scores", lambda kind, shape, data: (kind, (1, -5), data)), "scores|cannot be read"),
    "too many": (altered("scores", ("FP32", (1, 21), floats([0.5] * 21))), r"\[1, 0\.\.15\] are allowed"),
    "many": (altered("scores", ("FP32", (1, 2**40 - 1), b"")), r"\[1, 0\.\.15\] are allowed"),
    "other count": (
        altered("relative_boxes", lambda kind, shape, data: (kind, (1, 1, 4), data[:16])),
        "relative_boxes is",
    ),
    "short": (altered("scores", lambda kind, shape, data: (kind, shape, data[:-1])), "scores has"),
    "long": (altered("scores", lambda kind, shape, data: (kind, shape, data + b"0000")), "scores has"),
    "nan": (
        altered("mask_scores", lambda kind, shape, data: (kind, shape, floats([math.nan] * shape[1]))),
        "mask_scores are not finite",
    ),
    "infinite": (
        altered("relative_boxes", lambda kind, shape, data: (kind, shape, floats([math.inf] * 4 * shape[1]))),
        "boxes are not finite",
    ),
    "above 1": (
        altered("scores", lambda kind, shape, data: (kind, shape, floats([2.0] * shape[1]))),
        "not within 0.15 and 1",
    ),
    "below": (
        altered("scores", lambda kind, shape, data: (kind, shape, floats([0.1] * shape[1]))),
        "not within 0.15 and 1",
    ),
    "order": (
        altered("scores", lambda kind, shape, data: (kind, shape, floats(np.linspace(0.5, 0.9, shape[1])))),
        "the best first",
    ),
    "class": (
        altered(
            "category_ids", lambda kind, shape, data: (kind, shape, np.full(shape[1], -9, np.int64).tobytes())
        ),
        "category id -9, which its metadata does not name",
    ),
    "size": (
        altered("size", ("INT32", (1, 2), struct.pack("<ii", 9, 9))),
        "for an image of 9 x 9, not 60 x 40",
    ),
    "text": (altered("rles", lambda kind, shape, data: (kind, shape, data[:-1])), "rles has"),
    "huge text": (
        altered("rles", lambda kind, shape, data: (kind, shape, b"\xff\xff\xff\xff" + data[4:])),
        "rles has",
    ),
    "no rle": (altered("rles", lambda kind, shape, data: texts([b"\xff\x00"] * shape[1])), "RLE is damaged"),
    "empty rle": (altered("rles", lambda kind, shape, data: texts([b""] * shape[1])), "do not add up"),
    "other rle": (altered("rles", lambda kind, shape, data: texts([b"11"] * shape[1])), "do not add up"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_hostile_answers(server: FakeTriton, scheme: str) -> None:
    with load_engine(start(server, scheme)) as engine:
        for name, (change, text) in HOSTILE.items():
            server.change = change
            with pytest.raises(YolactError, match=text) as error:
                engine.predict(IMAGES[:1])
            message = str(error.value)
            assert not isinstance(error.value, EngineUnavailableError), name
            assert len(message) < 400 and "\n" not in message, name
        server.change = lambda values: values
        assert engine.predict(IMAGES[:1]) and engine.retried == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_answers_beyond_the_limits(server: FakeTriton, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_MAX_ANSWER_BYTES", "100000")
    with load_engine(start(server, scheme)) as engine:
        server.change = altered("rles", texts([b"0" * 200_000]))
        with pytest.raises(YolactError, match="answer has more bytes than the 100,000 allowed"):
            engine.predict(IMAGES[:1])
        monkeypatch.setenv("YOLACT_MAX_RLE", "50")
        server.change = lambda values: values
        with pytest.raises(YolactError, match=r"RLEs have .* characters, more than the 50 allowed"):
            engine.predict(IMAGES[:1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_hostile_metadata(server: FakeTriton, scheme: str) -> None:
    address = start(server, scheme)
    content = json.loads(server.parameters["yolact"])
    for parameters, text in (
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON|allowed"),
        ("[]", "is no JSON object"),
        ("{}", "config is missing"),
        (json.dumps({**content, "class_names": []}), "at least one class"),
        (json.dumps({**content, "class_names": ["\ud800", "b"]}), "half a character"),
        (json.dumps({**content, "input_size": 10**9}), "input_size"),
        (json.dumps({**content, "max_detections": 10**9}), "max_detections"),
        (json.dumps({**content, "category_ids": [1, 1]}), "twice"),
    ):
        server.parameters["yolact"] = parameters
        with pytest.raises(YolactError, match=text):
            load_engine(address)
    server.parameters["yolact"] = json.dumps(content)
    for answer in (
        b"",
        b"[]",
        b'{"engine": 1}',
        b'{"engine": "x", "precision": "fp7", "version": "1"}',
        b"\xff",
    ):
        server.change = altered("engine", texts([answer]))
        with pytest.raises(YolactError, match=r"no JSON object of engine|computes in 'fp7'"):
            load_engine(address)


def test_a_model_of_raw_heads_needs_no_priors_here(server: FakeTriton) -> None:
    """The server detects: neither its priors nor the network that re-scores masks come along."""
    content = json.loads(server.parameters["yolact"])
    server.parameters["yolact"] = json.dumps({**content, "detect": "runtime", "mask_iou": True})
    with load_engine(start(server, "http")) as engine:
        assert engine.metadata == replace(
            server.engine.metadata, mask_iou=True, max_batch=engine.metadata.max_batch
        )


class Raw:
    """A server that answers every connection with the same bytes, and `pause` seconds after each of them."""

    def __init__(self, answer: bytes, pause: float = 0.0) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}/yolact"
        threading.Thread(target=self.serve, args=(answer, pause), daemon=True).start()

    def serve(self, answer: bytes, pause: float) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(65536)
                    for index in range(len(answer)) if pause else ():
                        connection.sendall(answer[index : index + 1])
                        time.sleep(pause)
                    connection.sendall(b"" if pause else answer)
                except OSError:
                    pass


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "closed connection without response|Connection reset|ends too early"),
        (b"\x00\x00\x00\x04", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}", "ends too early"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "no JSON object"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nxx", "not JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "is not a model that"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc\r\nContent-Length: 0\r\n\r\n", "HTTP status 302"),
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "HTTP status 401"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "HTTP status 503"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + b"{" * 99_999, "ends too early"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, "more bytes than"),
    ],
)  # fmt: skip
def test_servers_that_speak_something_else(answer: bytes, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_MAX_ANSWER_BYTES", "99999")
    server = Raw(answer)
    with pytest.raises(YolactError, match=text):
        load_engine(server.address, retry_seconds=0)
    server.listener.close()


def test_bytes_that_come_one_by_one_do_not_defeat_the_time_limit() -> None:
    server = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000, pause=0.05)
    began = time.monotonic()
    with pytest.raises(EngineUnavailableError, match=r"no answer within 0.4 s"):
        load_engine(server.address, timeout=0.4, retries=0)
    assert time.monotonic() - began < 30
    server.listener.close()
