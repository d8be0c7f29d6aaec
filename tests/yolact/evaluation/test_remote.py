"""yolact-eval with an engine on a server, and commands that cannot use one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_onnx import RUNTIME, runtime_arrays, write_onnx
from fake_triton import FakeTriton

from yolact.cli import evaluate
from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact_export import cli as export
from yolact_runtime import load_engine


def test_figures_are_those_of_the_file_and_a_lost_server_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_shapes_dataset(tmp_path / "shapes", 1, 4)
    data = ["--images", "shapes/val", "--annotations", "shapes/annotations/instances_val.json"]
    metadata = replace(RUNTIME, class_names=("circle", "square", "triangle"), category_ids=(1, 4, 9))
    write_onnx(tmp_path / "m.onnx", runtime_arrays(), metadata)
    with load_engine(tmp_path / "m.onnx") as engine, FakeTriton(engine) as server:
        address = server.start_http().address().replace("://", "://ann:cret@")
        for name, source in (("own", "m.onnx"), ("remote", address)):
            assert evaluate.main(["--engine", source, *data, "--json", f"{name}.json"]) == 0
        own, remote = (json.loads(Path(f"{name}.json").read_text()) for name in ("own", "remote"))
        assert (own["mask"], own["box"], own["detections"]) == (
            remote["mask"], remote["box"], remote["detections"],
        )  # fmt: skip
        assert "cret" not in remote["engine"]
        capsys.readouterr()
        server.before = lambda: server.seen and server.stop()
        server.seen.clear()
        assert evaluate.main(["--engine", address, *data, "--retries", "0"]) == 1
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ERROR")]
        assert len(said) == 1 and "did not answer" in said[0] and "cret" not in said[0]


@pytest.mark.parametrize("words", [["--weights", "grpc://ann:cret@h/m"], ["inspect", "http://ann:cret@h/m"]])
def test_a_model_on_a_server_cannot_be_exported(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert export.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("ERROR") == 1 and "server" in said and "cret" not in said
