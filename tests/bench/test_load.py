"""`yolact-bench load` and engines on a server in other measurements."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_onnx import RUNTIME, runtime_arrays, write_onnx
from fake_triton import FakeTriton, RefusalError

from yolact_bench import cli
from yolact_bench.load import damage, requests_of
from yolact_bench.measure.engines import parse_engine, unique_names
from yolact_runtime import YolactError, load_engine
from yolact_runtime.errors import UsageError
from yolact_runtime.sources.images import read_image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(3):
        blobs = cv2.resize(rng.integers(0, 256, (5, 7, 3), np.uint8), (90, 60))
        cv2.imwrite(str(tmp_path / f"images/{index}.{('png', 'jpg')[index % 2]}"), blobs)
    return tmp_path / "images"


def test_load(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_onnx(tmp_path / "m.onnx", runtime_arrays(), RUNTIME)
    with load_engine(tmp_path / "m.onnx") as engine, FakeTriton(engine) as server:
        engine_option = server.start_http().address().replace("://", "://ann:cret@") + ":timeout=20"
        words = ["load", "--engine", engine_option, "--images", str(images), "--score-threshold", "0.05"]
        counts = ["--requests", "40", "--rounds", "2", "--concurrency", "4", "1", "--damaged", "0.1"]
        target = tmp_path / "load.json"
        more = ["--local", str(tmp_path / "m.onnx"), "--json", str(target)]
        assert cli.main([*words, *counts, *more]) == 0
        content = json.loads(target.read_text())
        assert content["equal"] == {"equal": 3, "of": 3} and content["precision"] == "fp32"
        assert [one["name"] for one in content["figures"]] == ["pipeline", "4", "1"]
        pipeline, *rest = content["figures"]
        assert (pipeline["answered"], pipeline["wrong"]) == (40, 0)
        for one in rest:
            assert (one["requests"], one["answered"], one["refused"]) == (40, 36, 4)
            assert (one["wrong"], one["lost"], one["retried"]) == (0, 0, 0)
            assert sum(one["errors"].values()) == 4
            assert 0 < one["p50"] <= one["p90"] <= one["p99"] <= one["max"]
            rate = one["throughput"]
            assert 0 < rate["low"] <= rate["value"] <= rate["high"] and one["ratio"]["value"] > 0
        said = capsys.readouterr()
        assert "cret" not in said.out + said.err + target.read_text()
        assert "3 of 3" in said.out

        # What should not happen is counted, and is the exit code.
        opened = len(server.seen) + 1

        def before() -> None:
            if len(server.seen) >= opened:
                raise RefusalError("broken")

        server.before = before
        prepared = ["--requests", "5", "--rounds", "1", "--concurrency", "2", "--send", "prepared"]
        assert cli.main([*words, *prepared, "--json", str(target)]) == 1
        (one,) = json.loads(target.read_text())["figures"]
        assert (one["wrong"], one["answered"]) == (5, 0)
        assert one["errors"] == {"the server answers: broken": 5}


def test_requests_that_are_not_answered_are_lost(images: Path, tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", runtime_arrays(), RUNTIME)
    with load_engine(tmp_path / "m.onnx") as engine, FakeTriton(engine) as server:
        server.start_http()

        def before() -> None:
            if len(server.seen) > 8:
                raise RefusalError("too busy", 503)

        server.before = before
        words = ["load", "--engine", f"{server.address()}:retries=1", "--images", str(images)]
        words += [
            "--requests",
            "10",
            "--rounds",
            "1",
            "--concurrency",
            "2",
            "--json",
            str(tmp_path / "l.json"),
        ]
        assert cli.main(words) == 1
        (one,) = json.loads((tmp_path / "l.json").read_text())["figures"]
        assert one["lost"] == 10 - one["answered"] > 0 and one["retried"] >= one["lost"]


def test_damaged_images_cannot_be_read(images: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    files = sorted(images.iterdir())
    requests = requests_of(files, 200, 0.1, tmp_path / "damaged")
    bad = [one for one in requests if one.damaged]
    assert len(bad) == 20 and [one.original for one in requests] == (files * 67)[:200]
    for one in bad:
        with pytest.raises(YolactError):
            read_image(one.path)
    for kind in range(4):
        assert damage(b"0123456789", kind) == damage(b"0123456789", kind) != b"0123456789"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--engine", "m.onnx"], "m.onnx is a file"),
        (["--engine", "grpc://h/m", "--damaged", "2"], "--damaged is 2.0"),
        (["--engine", "grpc://h/m", "--damaged", "0.1", "--send", "prepared"], "cannot be decoded here"),
        (["--engine", "grpc://h/m", "--concurrency", "1", "1"], "twice"),
        (["--engine", "grpc://h/m", "--requests", "3"], "--requests is 3"),
    ],
)
def test_wrong_options(words: list[str], text: str, images: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["load", "--images", str(images), *words]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_engines_on_a_server_are_measured_as_others(images: Path, tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", runtime_arrays(), RUNTIME)
    with load_engine(tmp_path / "m.onnx") as engine, FakeTriton(engine) as server:
        address = server.start_http().address()
        target = tmp_path / "r.json"
        words = ["--engine", str(tmp_path / "m.onnx"), "--engine", address, "--images", str(images)]
        limits = ["--seconds", "0.01", "--runs", "3", "--no-cold", "--threads", "1", "--batch", "1", "2"]
        assert cli.main([*words, *limits, "--json", str(target)]) == 0
    ours, other = json.loads(target.read_text())["engines"]
    assert ours["note"] == "" and "all times include the network" in other["note"]
    assert other["name"] == "yolact" and other["backend"].startswith("Triton, ")
    assert other["batches"][0]["detections"] == ours["batches"][0]["detections"]
    assert {"decode", "preprocess", "network", "rle"} <= other["batches"][0]["stages"].keys()


def test_addresses_with_options() -> None:
    spec = parse_engine("grpc://ann:a=b@h:8001/m:timeout=2.5,retries=3,streams=auto,name=x")
    assert spec.path == "grpc://ann:a=b@h:8001/m" and spec.name == "x"
    assert spec.options == {"timeout": 2.5, "retries": 3, "streams": "auto"}
    assert parse_engine("grpc://ann:a=b@h/m").path == "grpc://ann:a=b@h/m"
    with pytest.raises(UsageError, match="timeout is soon") as error:
        parse_engine("grpc://ann:cret@h/m:timeout=soon")
    assert "cret" not in str(error.value)
    specs = [parse_engine(f"grpc://ann:cret@{host}/m") for host in ("a", "b")]
    assert unique_names(specs) == ["grpc://a/m", "grpc://b/m"]
    assert unique_names(specs[:1]) == ["m"]
    assert unique_names([specs[0], specs[0]]) == ["grpc://a/m #1", "grpc://a/m #2"]
