"""Outputs compared with inputs and with each other."""

import os
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.outputs import check_outputs, engine_files

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("read.json", "other.json", "sub/image.png"):
        (tmp_path / name).write_text(name)
    return tmp_path


@posix
@pytest.mark.parametrize("spelling", ["plain", "dots", "absolute", "symbolic", "hard", "folder", "chain"])
def test_an_input_is_recognised_under_every_name(place, spelling):
    names = {"plain": "read.json", "dots": "./sub/../read.json", "absolute": str(place / "read.json")}
    (place / "symbolic").symlink_to("read.json")
    (place / "chain").symlink_to("symbolic")
    os.link("read.json", place / "hard")
    (place / "loop").symlink_to(".")
    names |= {"symbolic": "symbolic", "hard": "hard", "folder": "loop/read.json", "chain": "chain"}
    for read, write in (("read.json", names[spelling]), (names[spelling], "read.json")):
        with pytest.raises(UsageError, match=r"--json would write over .*, which is an input \(--engine\)"):
            check_outputs([("--engine", read)], [("--json", write)])
    check_outputs([("--engine", names[spelling])], [("--json", "other.json"), ("--report", None)])


def test_two_outputs_are_not_one_file(place):
    with pytest.raises(UsageError, match=r"--json and --jsonl write the same file sub/../new.json"):
        check_outputs([], [("--json", "new.json"), ("--jsonl", "sub/../new.json")])
    with pytest.raises(UsageError, match="--json and --report write the same file"):
        check_outputs([], [("--json", "-"), ("--report", "-")])
    check_outputs([], [("--json", os.devnull), ("--report", os.devnull)])


@posix
def test_an_image_in_a_folder_is_recognised(place):
    reads = [("--images", "sub")]
    with pytest.raises(UsageError, match="--json would write over"):
        check_outputs(reads, [("--json", "sub/image.png")])
    os.link("sub/image.png", "hidden.json")
    with pytest.raises(UsageError, match="--json would write over"):
        check_outputs(reads, [("--json", "hidden.json")])
    check_outputs(reads, [("--json", "other.json")])


@posix
def test_a_list_that_standard_input_comes_from(place, monkeypatch):
    saved = os.dup(0)
    handle = os.open("read.json", os.O_RDONLY)
    try:
        os.dup2(handle, 0)
        with pytest.raises(UsageError, match="standard input"):
            check_outputs([("standard input", "-")], [("--jsonl", "read.json")])
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(handle)


@posix
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sub", "cannot write sub: it is a folder; name a file"),
        ("read.json/x/y.json", "cannot write to folder read.json/x: read.json is a file"),
        ("gone/x.json", "cannot write to folder gone: it is a broken symbolic link"),
        ("circle", "cannot write circle: its symbolic links form a circle"),
        (f"{'n' * 300}.json", f"cannot write {'n' * 300}.json: File name too long"),
        ("socket", "cannot write socket: it is a socket"),
        ("/dev/fd/987", "cannot write /dev/fd/987: Bad file descriptor"),
    ],
)
def test_what_cannot_be_written_is_found_first(place, path, message):
    import socket

    (place / "gone").symlink_to("nowhere")
    (place / "circle").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        with pytest.raises(YolactError) as caught:
            check_outputs([], [("--json", path)])
    assert str(caught.value) == message


def test_the_check_leaves_no_trace(place):
    check_outputs([], [("--json", "new/deep/x.json")], [("--output", "folder/of/pictures")])
    assert sorted(path.name for path in place.iterdir()) == ["other.json", "read.json", "sub"]


def test_a_folder_is_not_standard_output(place):
    with pytest.raises(UsageError, match="--output -: files cannot go to standard output"):
        check_outputs([], [], [("--output", "-")])


def test_files_that_belong_to_an_engine(tmp_path):
    weights = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 64])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 64])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [out], [weights])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="big.weights")
    assert engine_files(path) == [path, tmp_path / "big.weights"]
    assert engine_files("m.xml")[1].name == "m.bin" and engine_files("m.engine")[1].name == "m.engine.json"
    assert engine_files(tmp_path / "missing.onnx") == [tmp_path / "missing.onnx"]
