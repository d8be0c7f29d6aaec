"""Engines on a real Triton server: the same results in all commands, and a server that is killed in a run.

Skipped where `YOLACT_TRITON_SERVER` names no environment with the server.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import onnx
import pytest

from yolact.cli import evaluate
from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact_bench import cli as bench
from yolact_export import cli as export
from yolact_runtime import Result, YolactError, cli, load_engine, tiled
from yolact_runtime.errors import UsageError

pytest.importorskip("tritonclient.grpc")
triton_server = pytest.importorskip("triton_server")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, graph: onnx.ModelProto) -> Path:
    """A folder with `m.onnx`, the repository `models` with the model `m`, and the dataset `shapes`."""
    triton_server.server_python()
    folder = tmp_path_factory.mktemp("remote")
    onnx.save(graph, folder / "m.onnx")
    words = ["--weights", str(folder / "m.onnx"), "--to", "triton", "--triton-name", "m"]
    assert export.main([*words, "--output", str(folder / "models")]) == 0
    make_shapes_dataset(folder / "shapes", 2, 12)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Any]:
    with triton_server.running_server(folder / "models") as server:
        yield server


def plain(result: Result) -> tuple[Any, ...]:
    arrays = result.boxes_float, result.scores, result.mask_scores, result.category_ids, result.areas
    return (result.height, result.width, result.rles, *(one.tobytes() for one in arrays))


def addresses(server: Any) -> list[str]:
    return [f"grpc://{server.grpc}/m", f"http://{server.http}/m/1"]


def test_results_are_those_of_the_file(server: Any, folder: Path) -> None:
    files = sorted((folder / "shapes/val").iterdir())
    images = [cv2.imread(str(path)) for path in files]
    with load_engine(folder / "m.onnx", backend="onnxruntime", threads=1) as local:
        for address in addresses(server):
            with load_engine(address) as engine:
                assert (engine.precision, engine.name) == ("fp32", f"Triton, {local.name}")
                for limits in (
                    {}, {"score_threshold": 0.0, "top_k": 500}, {"classes": ["circle", 9]},
                    {"score_threshold": 0.99},
                ):  # fmt: skip
                    found, expected = (one.predict(images, **limits) for one in (engine, local))
                    assert list(map(plain, found)) == list(map(plain, expected))
                found = engine.predict_encoded([path.read_bytes() for path in files], 0.1, 5)
                assert list(map(plain, found)) == list(map(plain, local.predict(images, 0.1, 5)))
                with pytest.raises(YolactError, match="the server answers: image of the request"):
                    engine.predict_encoded([files[0].read_bytes()[:500]])
        with tiled(load_engine(addresses(server)[0]), 64) as engine:
            expected = tiled(local, 64).predict(images[:3])
            assert list(map(plain, engine.predict(images[:3]))) == list(map(plain, expected))


def test_wrong_models(server: Any) -> None:
    for address in addresses(server):
        with pytest.raises(YolactError, match="no such model"):
            load_engine(address.replace("/m", "/n"))
        with pytest.raises(UsageError, match="precision int8 was asked for, and it is fp32"):
            load_engine(address, precision="int8")
    with pytest.raises(YolactError, match="the port of gRPC"):
        load_engine(f"grpc://{server.http}/m", retry_seconds=0)
    with pytest.raises(YolactError, match="the port of gRPC"):
        load_engine(f"http://{server.grpc}/m")


def test_commands(
    server: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    data = str(folder / "shapes/val")
    own = [str(folder / "m.onnx"), "--backend", "onnxruntime"]
    remote = [addresses(server)[0]]
    for more in ([], ["--tile", "120", "--track"]):
        for name, engine in (("own", own), ("remote", remote)):
            words = [data, "--engine", *engine, "--no-overlay", "--score-threshold", "0.1", *more]
            assert cli.main([*words, "--json", f"{name}/r.json", "--jsonl", f"{name}/r.jsonl"]) == 0
        for name in ("r.json", "r_bbox.json", "r_images.json"):
            assert Path("own", name).read_bytes() == Path("remote", name).read_bytes()
    assert json.loads(Path("remote/r.json").read_text())

    annotations = str(folder / "shapes/annotations/instances_val.json")
    for name, engine in (("own", own), ("remote", remote)):
        words = ["--images", data, "--annotations", annotations, "--engine", *engine]
        assert evaluate.main([*words, "--json", f"{name}.json"]) == 0
    figures = [json.loads(Path(f"{name}.json").read_text()) for name in ("own", "remote")]
    for key in ("mask", "box", "detections"):
        assert figures[0][key] == figures[1][key]

    words = ["load", "--engine", remote[0], "--local", f"{own[0]}:backend=onnxruntime,threads=1"]
    counts = ["--requests", "40", "--rounds", "2", "--concurrency", "1", "8", "--damaged", "0.1"]
    assert bench.main([*words, "--images", data, *counts, "--json", "load.json"]) == 0
    content = json.loads(Path("load.json").read_text())
    assert content["equal"] == {"equal": 12, "of": 12}
    for one in content["figures"][1:]:
        assert (one["answered"], one["refused"], one["lost"], one["wrong"]) == (36, 4, 0, 0)


def test_a_server_that_is_killed_and_started_again(
    server: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Nothing is lost or doubled, and everything is equal to a run without it."""
    monkeypatch.chdir(tmp_path)
    many = tmp_path / "images"
    many.mkdir()
    for index in range(10):
        for path in (folder / "shapes/val").iterdir():
            (many / f"{index}_{path.name}").symlink_to(path)
    address = addresses(server)[0]
    words = [str(many), "--engine", address, "--no-overlay", "--no-json", "--score-threshold", "0.1"]
    assert cli.main([*words, "--jsonl", "whole.jsonl"]) == 0
    capsys.readouterr()
    count = len(Path("whole.jsonl").read_bytes().splitlines())

    def restart() -> None:
        while (
            not Path("killed.jsonl").exists() or Path("killed.jsonl").read_bytes().count(b"\n") < count // 4
        ):
            if done.wait(0.01):
                return
        server.kill()
        server.start()

    done = threading.Event()
    thread = threading.Thread(target=restart)
    thread.start()
    code = cli.main([*words, "--jsonl", "killed.jsonl"])
    done.set()
    thread.join()
    said = capsys.readouterr().err
    assert code == 0 and "trying again" in said and "is back after" in said
    assert Path("killed.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert count == 120
