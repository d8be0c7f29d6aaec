"""The metadata of exported files, read without the libraries that run them."""

import argparse
import json
from xml.sax.saxutils import quoteattr

import pytest
from fake_onnx import RUNTIME, runtime_arrays, write_onnx

from yolact_runtime import load_engine
from yolact_runtime.engines.onnx_file import check_onnx
from yolact_runtime.engines.options import open_engine
from yolact_runtime.engines.stored import check_stored_classes, stored_metadata
from yolact_runtime.errors import UsageError
from yolact_runtime.metadata import PREFIX, Metadata


@pytest.fixture
def onnx(tmp_path):
    path = tmp_path / "a.onnx"
    write_onnx(path, runtime_arrays(), RUNTIME)
    return path


@pytest.fixture
def properties(onnx):
    return dict(check_onnx(onnx).properties)


def write_xml(path, properties):
    """As OpenVINO does: attributes, and nothing after the section but the ends of its parents."""
    items = "".join(
        f"<{name[len(PREFIX) :]} value={quoteattr(text)} />\n" for name, text in properties.items()
    )
    path.write_text(f"<net><layers/><rt_info><yolact>\n{items}</yolact>\n</rt_info></net>")
    return path


def write_record(path, properties):
    stored = {name.removeprefix(PREFIX): json.loads(text) for name, text in properties.items()}
    path.write_bytes(b"an engine")
    path.with_name(f"{path.name}.json").write_text(json.dumps({"metadata": stored, "engine": {}}))
    return path


def test_every_kind_of_file_says_the_same(onnx, properties, tmp_path):
    expected = Metadata.from_props(properties, onnx)
    files = [onnx, write_xml(tmp_path / "a.xml", properties), write_record(tmp_path / "a.plan", properties)]
    assert [stored_metadata(file) for file in files] == [expected] * 3


def test_openvinos_own_files(onnx, tmp_path):
    openvino = pytest.importorskip("openvino")
    properties = {**check_onnx(onnx).properties, f"{PREFIX}class_names": json.dumps(["<yolact>", 'ü&"', "c"])}
    model = openvino.Core().read_model(onnx)
    for name, text in properties.items():
        model.set_rt_info(text, ["yolact", name.removeprefix(PREFIX)])
    openvino.save_model(model, tmp_path / "b.xml")
    found = stored_metadata(tmp_path / "b.xml")
    assert found == Metadata.from_props(properties, "") and found.class_names == ("<yolact>", 'ü&"', "c")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"</yolact>",
        b"<yolact></yolact>",
        b"<yolact><a></yolact>",
        b"<yolact><input_size value='&a;'/></yolact>",
        b"</yolact><yolact>",
        b'<!DOCTYPE a [<!ENTITY b "bb">]><yolact><c value="&b;"/></yolact>',
    ],
)
def test_damaged_files_are_left_to_what_opens_them(content, tmp_path):
    for suffix in (".xml", ".onnx", ".engine"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        path.with_name(f"{path.name}.json").write_bytes(content)
        assert stored_metadata(path) is None
        check_stored_classes(path, ["zebra"], "--classes")


def test_other_files_and_none(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"weights")
    (tmp_path / "a.onnx").mkdir()
    (tmp_path / "a.engine").write_bytes(b"without its JSON")
    for name in ("a.pth", "a.onnx", "a.engine", "no.onnx", "yolact_base"):
        assert stored_metadata(tmp_path / name) is None


def test_a_wrong_class_is_reported_before_the_engine_is_opened(onnx, monkeypatch):
    with load_engine(onnx) as engine, pytest.raises(UsageError) as late:
        engine.class_indices(["zebra"], "--classes")
    monkeypatch.setattr("yolact_runtime.engines.load.load_engine", None)
    options = {"backend", "precision", "threads", "providers", "config", "input_size", "class_names"}
    args = argparse.Namespace(**dict.fromkeys(options), engine=str(onnx), classes=["zebra"])
    with pytest.raises(UsageError) as early:
        open_engine(args)
    assert str(early.value) == str(late.value)
