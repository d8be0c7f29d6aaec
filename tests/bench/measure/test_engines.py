"""What may stand behind `--engine`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact_bench.measure.engines import EngineSpec, parse_engine, unique_names
from yolact_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "path", "options"),
    [
        ("model.onnx", "model.onnx", {}),
        ("yolact_resnet50", "yolact_resnet50", {}),
        ("m.onnx:backend=openvino,precision=bf16", "m.onnx", {"backend": "openvino", "precision": "bf16"}),
        ("m.onnx:threads=2,streams=3", "m.onnx", {"threads": 2, "streams": 3}),
        ("m.onnx:streams=auto", "m.onnx", {"streams": "auto"}),
        ("m.onnx:providers=cuda+cpu", "m.onnx", {"providers": ("cuda", "cpu")}),
        (r"C:\models\m.onnx", r"C:\models\m.onnx", {}),
        (r"C:\models\m.onnx:threads=2", r"C:\models\m.onnx", {"threads": 2}),
        ("a:b/m.onnx", "a:b/m.onnx", {}),
        ("a=b/m.onnx", "a=b/m.onnx", {}),
        (r"C:\a=b\m.onnx", r"C:\a=b\m.onnx", {}),
    ],
)
def test_path_and_options(text: str, path: str, options: dict) -> None:
    spec = parse_engine(text)
    assert (spec.path, spec.options, spec.name) == (path, options, None)


def test_a_file_of_that_name_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m:threads=2").touch()
    assert parse_engine("m:threads=2") == EngineSpec("m:threads=2")


@given(st.text(st.characters(exclude_characters=":\0"), min_size=1))
def test_without_a_colon_all_is_the_path(text: str) -> None:
    assert parse_engine(text) == EngineSpec(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m.onnx:threads=many", "threads is many; it must be a whole number of 1 or more"),
        ("m.onnx:streams=0", "streams is 0"),
        ("m.onnx:precision=", "precision= has no value"),
        ("m.onnx:precision=a,precision=b", "precision is given twice"),
        (":threads=2", "no path before the options"),
    ],
)
def test_wrong_options(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_engine(text)


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["x/a.onnx", "b.pth"], ["a.onnx", "b.pth"]),
        (["x/a.onnx", "y/a.onnx"], ["x/a.onnx", "y/a.onnx"]),
        (["a.onnx", "a.onnx"], ["a.onnx #1", "a.onnx #2"]),
        (["a.onnx", "a.onnx:precision=bf16,threads=2"], ["a.onnx", "a.onnx bf16 threads=2"]),
        (["a.onnx:name=ours", "a.onnx"], ["ours", "a.onnx"]),
    ],
)
def test_names_are_different(texts: list[str], names: list[str]) -> None:
    assert unique_names([parse_engine(text) for text in texts]) == names


def test_a_name_given_twice() -> None:
    with pytest.raises(UsageError, match="name=x is given 2 times"):
        unique_names([parse_engine("a:name=x"), parse_engine("b:name=x")])
