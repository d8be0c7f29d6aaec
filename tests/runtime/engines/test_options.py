"""The options with which every command opens an engine."""

from dataclasses import replace

import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime.commandline import Parser
from yolact_runtime.engines import load
from yolact_runtime.engines.options import add_engine_options, open_engine
from yolact_runtime.errors import UsageError


@pytest.fixture
def parser():
    parser = Parser(prog="test")
    add_engine_options(parser)
    return parser


def test_only_what_was_given_is_passed_on(parser, monkeypatch):
    asked = []
    monkeypatch.setattr(load, "load_engine", lambda path, **options: asked.append((path, options)))
    open_engine(parser.parse_args(["--engine", "m.onnx"]))
    arguments = "--trained_model m.onnx --backend openvino --precision bf16 --threads 2"
    arguments += " --providers cuda:1 cpu --config c --input-size 384x640"
    open_engine(parser.parse_args(arguments.split()), streams="auto")
    assert asked == [
        ("m.onnx", {}),
        (
            "m.onnx",
            {
                "backend": "openvino",
                "precision": "bf16",
                "threads": 2,
                "providers": ["cuda:1", "cpu"],
                "config": "c",
                "input_size": (384, 640),
                "streams": "auto",
            },
        ),
    ]


def test_an_engine_is_opened(parser, tmp_path):
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    args = parser.parse_args(["--engine", str(path), "--backend", "onnxruntime", "--threads", "1"])
    with open_engine(args) as engine:
        assert (engine.name, engine.threads, engine.metadata) == ("ONNX Runtime CPU", 1, NATIVE)


def test_an_exported_file_keeps_its_size(parser, tmp_path):
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), replace(NATIVE, input_size=(48, 80)))
    words = ["--engine", str(path), "--backend", "onnxruntime", "--input-size"]
    with open_engine(parser.parse_args([*words, "48x80"])) as engine:
        assert engine.metadata.input_shape == (48, 80)
    for size in (80, (80, 48), "48"):
        with pytest.raises(
            UsageError, match=r"m\.onnx: its input is 48x80, and .* yolact-export --weights W"
        ):
            load.load_engine(path, input_size=size)
    with pytest.raises(UsageError, match="input size '48x': height x width"):
        parser.parse_args([*words, "48x"])


@pytest.mark.parametrize(
    "arguments", [[], ["--engine", "m", "--backend", "abacus"], ["--engine", "m", "--precision", "x"]]
)
def test_wrong_use(parser, arguments):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(arguments)
    assert stop.value.code == 2
