"""yolact-infer with an engine on a server: the same files, and runs in which it goes away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_engine import BlobEngine
from fake_onnx import RUNTIME, runtime_arrays, write_onnx
from fake_triton import FakeTriton

from yolact_runtime import Detections, cli, load_engine
from yolact_runtime.engines.remote import outage

SECRET = "://ann:cret@"


class Blobs(BlobEngine):
    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        return super().detect(batch)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 30 images; it is next to the current folder."""
    monkeypatch.setattr(outage, "FIRST", 0.02)
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(30):
        blobs = rng.integers(0, 256, (5, 7, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index:02}.png"), cv2.resize(blobs, (70, 50)))
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    return folder


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    with FakeTriton(Blobs()) as server:
        yield server.start_http()


def infer(server: FakeTriton, images: Path, *more: str) -> int:
    address = server.address("http").replace("://", SECRET)
    words = [str(images), "--engine", address, "--no-overlay", "--workers", "2", *more]
    return cli.main(words)


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_files_are_those_of_the_engine(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_onnx(tmp_path / "m.onnx", runtime_arrays(), RUNTIME)
    outputs = ["--no-overlay", "--score-threshold", "0.05"]
    with load_engine(tmp_path / "m.onnx") as engine, FakeTriton(engine) as server:
        server.start_http()
        for name, source in (("local", str(tmp_path / "m.onnx")), ("remote", server.address())):
            words = [str(images), "--engine", source, *outputs, "--json", f"{name}/r.json"]
            assert cli.main([*words, "--jsonl", f"{name}/r.jsonl", "--table", f"{name}/r.csv"]) == 0
    for name in ("r.json", "r_bbox.json", "r_images.json", "r.csv"):
        assert Path("local", name).read_bytes() == Path("remote", name).read_bytes()
    pairs = zip(lines("local/r.jsonl"), lines("remote/r.jsonl"), strict=True)
    assert all({**one, "run": ""} == {**other, "run": ""} for one, other in pairs)


def test_a_server_that_is_started_again_in_a_run(
    server: FakeTriton, images: Path, capsys: pytest.CaptureFixture
) -> None:
    assert infer(server, images, "--json", "whole.json", "--jsonl", "whole.jsonl") == 0
    server.seen.clear()

    def restart() -> None:
        server.stop()
        time.sleep(0.2)
        server.start_http()

    def before() -> None:
        if len(server.seen) >= 20:
            server.before = lambda: None
            threading.Thread(target=restart).start()

    server.before = before
    assert infer(server, images, "--json", "again.json", "--jsonl", "again.jsonl") == 0
    assert Path("again.json").read_bytes() == Path("whole.json").read_bytes()
    assert lines("again.jsonl") == lines("whole.jsonl")
    said = capsys.readouterr()
    assert "trying again" in said.err and "is back after" in said.err
    assert "cret" not in said.err + said.out and "30 images" in said.out
    assert not any(b"cret" in path.read_bytes() for path in Path().rglob("*") if path.is_file())


@pytest.mark.parametrize("batch", ["1", "4"])
def test_a_server_that_stays_away_ends_the_run_and_the_next_one_resumes(
    server: FakeTriton, images: Path, batch: str, capsys: pytest.CaptureFixture
) -> None:
    assert infer(server, images, "--no-json", "--jsonl", "whole.jsonl") == 0
    server.seen.clear()

    def before() -> None:
        if len(server.seen) >= 20:
            server.before = lambda: None
            threading.Thread(target=server.stop).start()

    server.before = before
    more = ("--json", "r.json", "--jsonl", "r.jsonl", "--retry-seconds", "0.2", "--batch-size", batch)
    more += ("--streams", "2")  # so that some are answered before
    capsys.readouterr()
    assert infer(server, images, *more) == 1
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith("ERROR")]) == 1 and "did not answer" in said[-1]
    done = [line for line in lines("r.jsonl") if "error" not in line]
    assert 1 <= len(done) < 30 and all(line in lines("whole.jsonl") for line in done)
    assert len(json.loads(Path("r.json").read_text())) == sum(len(line["detections"]) for line in done)
    # The server is on another port when it comes back.
    server.before, server.http_port = lambda: None, 0
    server.start_http()
    assert infer(server, images, *more, "--resume") == 0
    assert f"{len(done)} done before" in capsys.readouterr().out
    key = lambda line: line["image"]  # noqa: E731
    assert sorted(lines("r.jsonl"), key=key) == sorted(lines("whole.jsonl"), key=key)


def test_one_bad_image_does_not_end_a_run(server: FakeTriton, images: Path) -> None:
    (images / "05.png").write_bytes(b"no image")
    assert infer(server, images, "--no-json", "--jsonl", "r.jsonl") == 1
    assert ["error" in line for line in lines("r.jsonl")] == [index == 5 for index in range(30)]


@pytest.mark.parametrize("option", ["--timeout", "--connect-timeout", "--retries", "--retry-seconds"])
def test_options_of_servers_are_not_for_files(
    option: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_onnx(tmp_path / "m.onnx", runtime_arrays(), RUNTIME)
    assert cli.main([str(images), "--engine", str(tmp_path / "m.onnx"), option, "1"]) == 2
    assert "does not apply to a .onnx engine" in capsys.readouterr().err
