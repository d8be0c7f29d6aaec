"""Properties of ONNX files, against the ONNX library, and files that no library should see."""

import importlib.util
import os
from pathlib import Path

import hypothesis
import numpy as np
import onnx
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx
from hypothesis import strategies

from yolact_export.cli import main as export_main
from yolact_export.onnx_graph import read_graph
from yolact_runtime import YolactError, load_engine
from yolact_runtime.engines.onnx_file import check_onnx, read_external_files, read_nodes, read_properties
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine
from yolact_runtime.engines.openvino import OpenVinoEngine


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


def move_weights(tensor: onnx.TensorProto, folder: Path, **entries: object) -> None:
    """Put the data of a tensor into `weights.bin`, or say with `entries` that it is somewhere else."""
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    found = {"location": "weights.bin", "offset": 0, "length": len(tensor.raw_data), **entries}
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in found.items():
        tensor.external_data.add(key=key, value=str(value))


@pytest.fixture
def graph(tmp_path):
    """A model, and its largest weights."""
    model = onnx.load(write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE))
    return model, max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))


def refused(model, path, message):
    """Every way to open a file refuses it with one line."""
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    openings = [check_onnx, OnnxRuntimeEngine, load_engine, read_graph]
    if importlib.util.find_spec("openvino"):
        openings += [OpenVinoEngine, lambda path: load_engine(path, backend="openvino")]
    for opening in openings:
        with pytest.raises(YolactError, match=message) as raised:
            opening(path)
        assert "\n" not in str(raised.value)
    assert export_main(["inspect", str(path)]) == 1
    assert read_properties(path) is None


def test_weights_in_another_file(tmp_path, graph):
    """Above 2 GB they have to be."""
    model, tensor = graph
    move_weights(tensor, tmp_path)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    backends = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    for backend in backends:
        with load_engine(path, backend=backend) as engine:
            assert len(engine.predict([np.full((20, 30, 3), 255, np.uint8)])[0]) == 2
    assert read_external_files(path) == {"weights.bin"}
    assert len(read_graph(path).graph.node) == len(model.graph.node)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"location": "*/_ORT_MEM_ADDR_/*", "offset": 4096}, "an address in the memory"),
        ({"location": "x/_ORT_MEM_ADDR_"}, "an address in the memory"),
        ({"location": "/etc/hostname"}, "only a plain name"),
        ({"location": "../secret"}, "only a plain name"),
        ({"location": "inner/../../secret"}, "only a plain name"),
        ({"location": "C:\\secret"}, "only a plain name"),
        ({"location": "link"}, "it is a symbolic link"),
        ({"location": "linked/weights.bin"}, "it is a symbolic link"),
        ({"location": "pipe"}, "not a regular file"),
        ({"location": "none"}, "cannot be read"),
        ({"location": ""}, "no location"),
        ({"offset": 1}, "bytes, and .* from byte 1 on are needed"),
        ({"offset": -4096}, "no number"),
        ({"length": 1 << 50}, "are needed"),
        ({"basepath": "x"}, "the entry 'basepath'"),
    ],
)
def test_weights_elsewhere_are_not_read(tmp_path, graph, entries, problem):
    model, tensor = graph
    move_weights(tensor, tmp_path, **entries)
    (tmp_path / "link").symlink_to(tmp_path / "weights.bin")
    (tmp_path / "linked").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    refused(model, tmp_path / "m.onnx", problem)


@pytest.mark.parametrize("where", ["constant", "branch", "list", "sparse", "function", "training", "twice"])
def test_no_other_data_is_elsewhere(tmp_path, graph, where):
    model, tensor = graph
    move_weights(tensor, tmp_path)
    moved = onnx.TensorProto()
    moved.CopyFrom(tensor)
    model = onnx.load(tmp_path / "m.onnx")
    node = model.graph.node[0]
    if where == "constant":
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(moved)
    elif where == "branch":
        node.attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.initializer.append(moved)
    elif where == "list":
        node.attribute.add(name="all", type=onnx.AttributeProto.TENSORS).tensors.append(moved)
    elif where == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(moved)
    elif where == "function":
        inner = model.functions.add(name="f").node.add()
        inner.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(moved)
    elif where == "training":
        model.training_info.add().algorithm.initializer.append(moved)
    content = model.SerializeToString()
    if where == "twice":  # protobuf merges messages that come twice
        second = onnx.ModelProto()
        second.graph.node.add().attribute.add(name="value").t.CopyFrom(moved)
        content += second.SerializeToString()
    refused(content, tmp_path / "m.onnx", "data in another file that is not the weights")


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        *((version, f"its opset is {version}; 13 or later") for version in (-1, 0, 11, 12)),
        (1 << 31, "an opset of"),
    ],
)
@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_opsets_that_openvino_does_not_survive(tmp_path, graph, domain, version, problem):
    model, _ = graph
    model.opset_import[0].version, model.opset_import[0].domain = version, domain
    refused(model, tmp_path / "m.onnx", problem)


@pytest.mark.parametrize("text", ["cat", "images", "prototypes_value", "Expand", "yolact.config"])
def test_text_that_is_not_utf_8(tmp_path, graph, text):
    content = graph[0].SerializeToString()
    refused(content.replace(text.encode(), b"\xff" + text[1:].encode()), tmp_path / "m.onnx", "is not UTF-8")


def test_graphs_within_each_other_without_end(tmp_path, graph):
    content = b""
    for _ in range(1000):  # a graph in an attribute of a node
        for number in (6, 5, 1):
            content = bytes([number << 3 | 2]) + varint(len(content)) + content
    refused(
        graph[0].SerializeToString() + b"\x3a" + varint(len(content)) + content,
        tmp_path / "m.onnx",
        "more than 40",
    )


def varint(value):
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "zeros"])
def test_what_is_no_file_of_an_engine(tmp_path, kind):
    path = tmp_path / "m.onnx"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(2 << 30)
    for opening in (check_onnx, load_engine, read_graph):
        with pytest.raises(YolactError, match=r"not a file|folder|damaged"):
            opening(path)
