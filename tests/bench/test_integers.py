"""`yolact-bench int8`: layers in integers, and times."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_onnx import NATIVE, int8_file, native_arrays, write_onnx

from yolact_bench import cli


def test_layers_are_those_of_the_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A convolution with an unsigned range is an integer one; with a Relu before a signed range it is not."""
    plain = write_onnx(tmp_path / "plain.onnx", native_arrays(), NATIVE)
    fused, apart = (int8_file(tmp_path / f"relu_{relu}.onnx", relu) for relu in (False, True))
    assert cli.main(["int8", *map(str, (plain, fused, apart)), "--rounds", "2"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: row[2:5] for row in rows if row[1:2] == ["onnxruntime"]}
    assert found["plain.onnx"] == ["0", "of", "0"]
    assert found["relu_False.onnx"] == ["1", "of", "1"]
    assert found["relu_True.onnx"] == ["0", "of", "1"]
    assert any("times as fast" in " ".join(row) for row in rows)


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = int8_file(tmp_path / "m.onnx", relu=False)
    assert cli.main(["int8", str(path), "--rounds", "0"]) == 2
    assert "--rounds is 0" in capsys.readouterr().err
