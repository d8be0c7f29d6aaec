"""Addresses of models on a server, and where they are given instead of a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolact_runtime import YolactError, load_engine
from yolact_runtime.engines.remote.address import engine_name, is_address, parse_address
from yolact_runtime.errors import UsageError
from yolact_runtime.outputs import engine_files


@pytest.mark.parametrize(
    ("text", "shown", "port", "version"),
    [
        ("grpc://localhost:9001/yolact", "grpc://localhost:9001/yolact", 9001, ""),
        ("http://10.0.0.1/y.o-l_1/3", "http://10.0.0.1:8000/y.o-l_1/3", 8000, "3"),
        ("grpc://h/m", "grpc://h:8001/m", 8001, ""),
        ("GRPCS://H/m/", "grpcs://h:443/m", 443, ""),
        ("https://[::1]:8443/m", "https://[::1]:8443/m", 8443, ""),
    ],
)
def test_parts(text: str, shown: str, port: int, version: str) -> None:
    found = parse_address(text)
    assert (str(found), found.port, found.version) == (shown, port, version)
    assert parse_address(Path(text)) == found  # which has one slash only


def test_credentials_are_sent_and_never_shown() -> None:
    found = parse_address("http://ann:s%40cr%3Aet@host:1/m")
    assert found.credentials == "ann:s@cr:et"
    assert "s@cr" not in f"{found} {found!r}" and "ann" not in f"{found} {found!r}"


@pytest.mark.parametrize(
    "text",
    [
        "grpc://ann:secret@host:8001", "grpc://ann:secret@/m", "http://ann:secret@host:99999/m",
        "http://ann:secret@host:x/m", "grpc://ann:secret@h/m/v1", "http://ann:secret@h/a/b/c",
        "http://ann:secret@h/m?key=secret", "http://ann:secret@h/m#secret", "http://[ann:secret/m",
        "grpc://ann:secret@h:0/m", "grpc://ann:secret@h/m n",
        "http://ann:secret@a..b:8000/m", "http://ann:secret@a b/m", "http://ann:secret@h/m\u0661",
    ],
)  # fmt: skip
def test_other_forms_are_refused_without_their_secrets(text: str) -> None:
    with pytest.raises(UsageError, match="MODEL/VERSION is needed") as error:
        load_engine(text)
    assert "secret" not in str(error.value) or text == "http://[ann:secret/m"


@pytest.mark.parametrize(
    "path", ["model.onnx", "C:\\model.onnx", "rtsp://h/x", "grpc", "./grpc:/x.onnx", "http.onnx", "grpc://"]
)
def test_paths_are_no_addresses(path: str) -> None:
    assert not is_address(path)
    with pytest.raises(YolactError):
        load_engine(path)


def test_an_address_is_no_file() -> None:
    assert engine_files("grpc://h/m") == [] and engine_files("m.onnx") == [Path("m.onnx")]
    assert engine_name("grpc://h/m/2") == "m" and engine_name("a/m.onnx") == "m.onnx"


@pytest.mark.parametrize(
    ("option", "value"), [("backend", "openvino"), ("threads", 2), ("providers", ["cpu"]), ("nms", "x")]
)
def test_options_of_files_are_refused(option: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"option '{option}' does not apply to an engine on a server"):
        load_engine("grpc://localhost:1/m", **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", 0),
        ("timeout", 1e6),
        ("connect_timeout", -1),
        ("retries", -1),
        ("retry_seconds", float("nan")),
    ],
)
def test_limits_have_a_range(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{option} is"):
        load_engine("http://localhost:1/m", **{option: value})
