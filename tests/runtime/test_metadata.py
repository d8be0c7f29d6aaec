import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from fake_onnx import NATIVE, RUNTIME

from yolact_runtime import Metadata, YolactError
from yolact_runtime.errors import UsageError
from yolact_runtime.metadata import parse_input_size, size_text, to_input_size

FILE = Path("model.onnx")


@pytest.mark.parametrize("metadata", [NATIVE, RUNTIME], ids=["native", "runtime"])
def test_what_is_written_is_read_back(metadata):
    full = dataclasses.replace(metadata, versions={"torch": "2.9"}, command="yolact-export --weights w")
    props = full.to_props()
    assert all(key.startswith("yolact.") and isinstance(value, str) for key, value in props.items())
    assert Metadata.from_props({**props, "yolact.future": "1", "other": "x"}, FILE) == full


def test_an_input_that_is_not_square_is_written_as_two_sides():
    wide = dataclasses.replace(NATIVE, input_size=(48, 80))
    assert wide.input_shape == (48, 80)
    assert wide.to_props()["yolact.input_size"] == "[48, 80]"
    assert Metadata.from_props(wide.to_props(), FILE) == wide


def test_a_square_is_written_as_one_side_as_ever():
    square = dataclasses.replace(NATIVE, input_size=(48, 48))
    assert (square.input_size, square.input_shape) == (48, (48, 48))
    assert square.to_props()["yolact.input_size"] == "48"


@pytest.mark.parametrize("levels", [[[49, 2]], [[2, 81]]])
def test_levels_larger_than_a_side_of_the_input(levels):
    props = dataclasses.replace(RUNTIME, input_size=(48, 80)).to_props()
    spec = {**json.loads(props["yolact.priors"]), "levels": levels}
    with pytest.raises(YolactError, match=r"levels must be in 1\.\.48 and 1\.\.80"):
        Metadata.from_props({**props, "yolact.priors": json.dumps(spec)}, FILE)


@pytest.mark.parametrize(("text", "size"), [("384x640", (384, 640)), ("550", 550), ("64x64", 64)])
def test_sizes_as_text(text, size):
    assert parse_input_size(text) == size
    assert parse_input_size(size_text(size)) == size


@pytest.mark.parametrize(
    "text", ["", "x", "384x", "384x640x3", "-1x5", "384 x 640", "wide", "0x64", "64x4096"]
)
def test_texts_that_are_no_size(text):
    with pytest.raises(UsageError, match=r"input size .*(384x640|2,048 allowed)"):
        parse_input_size(text)


@pytest.mark.parametrize(
    "size", [(48, 80), [48, 80], np.array([48, 80]), (np.int64(48), np.int64(80)), "48x80"]
)
def test_sizes_from_python(size):
    assert to_input_size(size) == (48, 80)
    assert to_input_size(np.int64(48)) == 48


@pytest.mark.parametrize("size", [(48,), (1, 2, 3), 48.5, (48.0, 80.0), True, (True, 80), object(), (-1, 80)])
def test_python_values_that_are_no_size(size):
    with pytest.raises(UsageError, match="input size"):
        to_input_size(size)


def test_provenance_may_be_missing():
    props = NATIVE.to_props()
    for name in ("created", "command", "versions", "weights_sha256", "onnx_sha256", "priors"):
        del props[f"yolact.{name}"]
    assert Metadata.from_props(props, FILE) == NATIVE


@pytest.mark.parametrize("name", ["class_names", "mean", "detect", "score_threshold", "max_batch"])
def test_a_missing_field_is_named_with_the_file(name):
    props = NATIVE.to_props()
    del props[f"yolact.{name}"]
    with pytest.raises(YolactError, match=rf"model\.onnx.*{name} is missing.*yolact-export") as raised:
        Metadata.from_props(props, FILE)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_names", "cat"),
        ("class_names", []),
        ("class_names", ["cat", 3, "dog"]),
        ("category_ids", [1, 2]),
        ("category_ids", [1, 1, 2]),
        ("category_ids", [1.5, 2, 3]),
        ("mean", [1, 2]),
        ("std", [1.0, 0.0, 1.0]),
        ("input_size", 0),
        ("input_size", True),
        ("input_size", [16]),
        ("input_size", [16, 0]),
        ("input_size", [16, 1 << 20]),
        ("input_size", [16.5, 16]),
        ("input_dtype", "float16"),
        ("channel_order", "RGB"),
        ("detect", "magic"),
        ("detect", "runtime"),
        ("score_threshold", 1.5),
        ("max_detections", -1),
        ("max_batch", 0),
        ("min_batch", 1 << 40),
        ("max_batch", 1025),
        ("max_detections", 10**9),
        ("nms_top_k", 10_001),
        ("input_size", 1 << 20),
        ("category_ids", [1, 2, 1 << 60]),
        ("mean", [1.0, float("nan"), 1.0]),
        ("std", [1.0, float("inf"), 1.0]),
        ("std", [1.0, 1e-300, 1.0]),
        ("score_threshold", float("nan")),
        ("score_threshold", 10**400),
        ("class_names", ["\ud800", "b", "c"]),
        ("created", "\udfff"),
        ("priors", {"levels": [[1, 2]]}),
        ("versions", ["torch"]),
    ],
)
def test_a_wrong_value_is_named(name, value):
    props = {**NATIVE.to_props(), f"yolact.{name}": json.dumps(value)}
    with pytest.raises(YolactError, match=r"model\.onnx: metadata field yolact\."):
        Metadata.from_props(props, FILE)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"levels": []}, "0 levels; 1 to"),
        ({"levels": [[1, 1]] * 17, "scales": [[1.0]] * 17}, "17 levels; 1 to"),
        ({"scales": []}, "1 levels, but scales for 0"),
        ({"scales": [[]]}, "each level needs a scale"),
        ({"aspect_ratios": []}, "all need an aspect ratio"),
        ({"levels": [[-1, -5]]}, "must be in 1..16"),
        ({"levels": [[0, 2]]}, "must be in 1..16"),
        ({"levels": [[10**6, 1]]}, "must be in 1..16"),
        ({"scales": [[float("nan")]]}, "must be in 1e-06"),
        ({"scales": [[-20.0]]}, "must be in 1e-06"),
        ({"scales": [[1e300]]}, "must be in 1e-06"),
        ({"aspect_ratios": [float("inf")]}, "must be in 1e-06"),
        ({"levels": [[16, 16]], "scales": [[1.0] * 20_000]}, "5,120,000 priors, more than"),
    ],
)
def test_priors_that_cannot_be(changes, problem):
    value = dataclasses.asdict(RUNTIME)["priors"] | changes
    with pytest.raises(YolactError, match=rf"yolact\.priors is .*{problem}") as raised:
        Metadata.from_props({**RUNTIME.to_props(), "yolact.priors": json.dumps(value)}, FILE)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("text", ["[" * 50_000, "9" * 400, '["\\ud800"]', "NaN", "1e999"])
@pytest.mark.parametrize("name", ["created", "score_threshold", "versions", "class_names", "input_size"])
def test_json_that_breaks_readers(name, text):
    with pytest.raises(YolactError, match=rf"^model\.onnx: metadata field yolact\.{name} is ") as raised:
        Metadata.from_props({**NATIVE.to_props(), f"yolact.{name}": text}, FILE)
    assert len(str(raised.value)) < 400


def test_text_that_is_not_json():
    with pytest.raises(YolactError, match=r"yolact\.config is 'yolact_base', not a str"):
        Metadata.from_props({**NATIVE.to_props(), "yolact.config": "yolact_base"}, FILE)


def test_contradictions_are_not_written():
    with pytest.raises(YolactError, match="category_ids"):
        dataclasses.replace(NATIVE, category_ids=(1,)).to_props()
