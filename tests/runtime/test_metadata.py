import dataclasses
import json
from pathlib import Path

import pytest
from fake_onnx import NATIVE, RUNTIME

from yolact_runtime import Metadata, YolactError

FILE = Path("model.onnx")


@pytest.mark.parametrize("metadata", [NATIVE, RUNTIME], ids=["native", "runtime"])
def test_what_is_written_is_read_back(metadata):
    full = dataclasses.replace(metadata, versions={"torch": "2.9"}, command="yolact-export --weights w")
    props = full.to_props()
    assert all(key.startswith("yolact.") and isinstance(value, str) for key, value in props.items())
    assert Metadata.from_props({**props, "yolact.future": "1", "other": "x"}, FILE) == full


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
        ("input_dtype", "float16"),
        ("channel_order", "RGB"),
        ("detect", "magic"),
        ("detect", "runtime"),
        ("score_threshold", 1.5),
        ("max_detections", -1),
        ("max_batch", 0),
        ("priors", {"levels": [[1, 2]]}),
        ("versions", ["torch"]),
    ],
)
def test_a_wrong_value_is_named(name, value):
    props = {**NATIVE.to_props(), f"yolact.{name}": json.dumps(value)}
    with pytest.raises(YolactError, match=r"model\.onnx: metadata field yolact\."):
        Metadata.from_props(props, FILE)


def test_text_that_is_not_json():
    with pytest.raises(YolactError, match=r"yolact\.config is 'yolact_base', not a str"):
        Metadata.from_props({**NATIVE.to_props(), "yolact.config": "yolact_base"}, FILE)


def test_contradictions_are_not_written():
    with pytest.raises(YolactError, match="category_ids"):
        dataclasses.replace(NATIVE, category_ids=(1,)).to_props()
