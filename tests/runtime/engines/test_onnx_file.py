"""Properties of ONNX files, against the ONNX library."""

import hypothesis
import onnx
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx
from hypothesis import strategies

from yolact_runtime.engines.onnx_file import read_nodes, read_properties


def test_they_are_what_the_library_reads(tmp_path):
    props = {"yolact.config": '"größe"', "empty": "", "long": "x" * 100_000}
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE, props=props)
    assert read_properties(path) == {item.key: item.value for item in onnx.load(path).metadata_props} == props


def test_a_file_without_any(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE, props={})
    assert read_properties(path) == {}


def test_nodes_are_what_the_library_reads(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    model = onnx.load(path)
    for index, node in enumerate(model.graph.node):
        node.name = f"node {index}" if index % 2 else ""
    onnx.save(model, path)
    assert read_nodes(path) == [(node.name, node.op_type) for node in model.graph.node] != []


@pytest.mark.parametrize("content", [b"", b"hello, I am text", b"\0" * 50, b"\xff" * 50])
def test_other_files(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert read_properties(path) is None
    assert read_properties(tmp_path / "none.onnx") is None
    assert read_properties(tmp_path) is None


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    return path, write_onnx(path, native_arrays(), NATIVE).read_bytes()


@hypothesis.given(strategies.data())
def test_damage_never_raises(data, drawn):
    path, content = data
    cut = drawn.draw(strategies.integers(0, len(content) - 1))
    flip = drawn.draw(strategies.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[flip] ^= drawn.draw(strategies.integers(1, 255))
    for some in (content[:cut], bytes(damaged)):
        path.write_bytes(some)
        assert isinstance(read_properties(path), dict | None)
