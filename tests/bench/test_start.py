"""`yolact-bench start`: every state of the cache is measured, and the caches of the user are left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_bench import start
from yolact_bench.cli import main
from yolact_runtime import YolactError


def test_wrong_options_come_before_any_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "--engine", str(tmp_path / "none.onnx")]) == 2
    network = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    assert main(["start", "--engine", str(network), "--backends", "torch"]) == 2
    errors = capsys.readouterr().err
    assert "is not a file" in errors and "--checkpoint FILE" in errors


def test_what_the_user_has_set_does_not_change_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in start._REMOVED:
        monkeypatch.setenv(name, "1")
    folder = tmp_path / "runs"
    words = ["-c", f"import os; print([name in os.environ for name in {start._REMOVED}])"]
    assert json.loads(start._in_state("new file", words, folder)[0].lower()) == [False, False, False]
    assert json.loads(start._in_state("tried", words, folder)[0].lower()) == [False, True, False]
    monkeypatch.setattr(start, "_MOST_SECONDS", 0.05)
    with pytest.raises(YolactError, match="takes more than"):
        start._in_state("peer", ["-c", "import time; time.sleep(9)"], folder)
    real = start.importlib.util.find_spec
    monkeypatch.setattr(
        start.importlib.util, "find_spec", lambda name: None if name == "resource" else real(name)
    )
    network = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    assert main(["start", "--engine", str(network)]) == 2


@pytest.mark.slow
def test_all_states_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path / "cache"))
    network = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    words = ["start", "--engine", str(network), "--backends", "onnxruntime", "--runs", "1"]
    assert main([*words, "--json", str(tmp_path / "times.json")]) == 0
    times = json.loads((tmp_path / "times.json").read_text())
    states = [f"onnxruntime, {state}" for state in ("new file", "tried", "again")]
    assert list(times["phases"]) == states and len(times["commands"]) == 4
    assert all(cpu > 0 for row in times["commands"].values() for cpu, _ in row)
    assert "yolact-infer, onnxruntime, again" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
