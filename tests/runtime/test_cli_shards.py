"""`--shard` of yolact-infer: which images, which ids, resumed runs, and what is refused."""

import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import YolactError, cli
from yolact_runtime.sources.listing import ListSource
from yolact_runtime.sources.open import open_source
from yolact_runtime.sources.shard import ShardSource

FILES = ["mask_detections.json", "bbox_detections.json", "images.json", "d.json", "l.jsonl", "t.csv"]
NAMES = ["in/b/0.png", "in/a/1.png", "in/a/2.png", "in/b/3.png", "in/a/4.png"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An engine, five images in two folders, the second of them damaged, and a list of them."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    for name in NAMES:
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        assert cv2.imwrite(name, np.full((20, 30, 3), 255, np.uint8))
    Path(NAMES[1]).write_bytes(b"\x89PNG\r\n\x1a\n")
    Path("list.txt").write_text("\n".join(NAMES))
    return tmp_path


def infer(folder, *arguments, sources=("in/a", "in/b")):
    outputs = zip(("--json", "--coco-dataset", "--jsonl", "--table"), (FILES[0], *FILES[3:]), strict=True)
    words = [word for option, name in outputs for word in (option, f"{folder}/{name}")]
    words += ["--engine", "m.onnx", "--threads", "1", "--backend", "onnxruntime", "--no-overlay", "--quiet"]
    return cli.main([*words, *map(str, sources), *arguments])


def merge_and_compare(count, whole="whole"):
    lines = [f"{n}/l.jsonl" for n in range(1, count + 1)]
    outputs = zip(("--json", "--coco-dataset", "--jsonl", "--table"), (FILES[0], *FILES[3:]), strict=True)
    words = [word for option, name in outputs for word in (option, f"merged/{name}")]
    assert cli.main(["merge", "--quiet", *lines, *words]) == 1
    for name in FILES:
        assert Path("merged", name).read_bytes() == Path(whole, name).read_bytes(), name


@pytest.mark.parametrize("sources", [("in/a", "in/b"), ("in/*/*.png",), ("-",)])
def test_shards_with_one_that_is_killed_and_resumed(place, monkeypatch, sources):
    def run(folder, *arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("list.txt").read_bytes())))
        return infer(folder, *arguments, sources=sources)

    assert run("whole") == 1
    codes = [run(str(n), "--shard", f"{n}/7") for n in range(1, 8)]
    assert sorted(codes) == [0] * 6 + [1]
    assert json.loads(Path("7/mask_detections.json").read_text()) == []
    merge_and_compare(7)
    for n in (1, 2):
        run(f"{n}", "--shard", f"{n}/2")
        lines = Path(f"{n}/l.jsonl")
        lines.write_bytes(lines.read_bytes()[:-30])
        assert run(f"{n}", "--shard", f"{n}/2", "--resume") in (0, 1)
    merge_and_compare(2)


def test_a_name_twice_in_a_list_of_which_the_second_is_done(place, monkeypatch):
    def run(folder, *arguments):
        text = "\n".join([*NAMES, NAMES[0]])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return infer(folder, *arguments, sources=["-"])

    assert run("whole") == run("1", "--shard", "1/1") == 1
    head, _, *rest = Path("1/l.jsonl").read_bytes().splitlines(keepends=True)
    Path("1/l.jsonl").write_bytes(head + b"".join(rest))
    assert run("1", "--shard", "1/1", "--resume") == 1
    merge_and_compare(1)


def test_another_shard_list_or_run_is_not_resumed(place, capsys):
    assert infer("1", "--shard", "1/2") in (0, 1)
    before = Path("1/l.jsonl").read_bytes()
    cases = {
        ("--shard", "2/2"): "it is of shard 1 of 2; give --shard 1/2",
        (): "it is of shard 1 of 2; give --shard 1/2",
        ("--shard", "1/2", "--score-threshold", "0.9"): "written with another engine or with other options",
    }
    capsys.readouterr()
    for words, message in cases.items():
        assert infer("1", "--resume", *words) == 1
        assert message in capsys.readouterr().err
        assert Path("1/l.jsonl").read_bytes() == before
    assert infer("1", "--resume", "--shard", "1/2", sources=["in/a"]) == 1
    assert "is of another list of images, of 5 and not 3 or with other names" in capsys.readouterr().err
    infer("2")
    capsys.readouterr()
    assert infer("2", "--resume", "--shard", "1/2") == 1
    assert "it was written without --shard" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["0/16", "17/16", "3", "a/b", "3/1000000000", "-1/3", "1/0", "1/3/4", "\u0663/9"]
)
def test_wrong_shards(capsys, text):
    assert cli.main(["--engine", "none.onnx", "none.jpg", f"--shard={text}"]) == 2
    error = capsys.readouterr().err
    assert "--shard" in error and error.count("\n") == 1


def test_what_has_no_shards(place, capsys):
    Path("v.mp4").touch()
    assert infer("o", "--shard", "1/2", "--track") == 2
    assert infer("o", "--shard", "1/2", sources=["camera:7"]) == 2
    error = capsys.readouterr().err
    assert "--track needs all frames" in error and "camera:7 is a video or camera" in error


def test_every_third_image_of_a_list(place):
    for number, expected in ((1, NAMES[::3]), (2, NAMES[1::3]), (3, NAMES[2::3])):
        source = ShardSource(open_source(["-"], io.BytesIO("\n".join(NAMES).encode())), number, 3)
        frames = list(source)
        assert [frame.name for frame in frames] == expected and source.total == len(expected)
        assert [frame.index for frame in frames] == list(range(number - 1, 5, 3))
    other = ShardSource(open_source(["-"], io.BytesIO("\n".join(reversed(NAMES)).encode())), 3, 3)
    assert other.names != source.names


def test_a_list_that_cannot_be_read_or_is_empty(place, monkeypatch):
    with pytest.raises(YolactError, match="UTF-16"):
        ShardSource(ListSource(io.BytesIO("a.png".encode("utf-16"))), 1, 2)
    empty = ShardSource(ListSource(io.BytesIO(b"\n")), 1, 2)
    assert empty.total == empty.listed == 0 and list(empty) == []


def test_a_file_that_is_called_merge(place, capsys):
    Path("in/a/2.png").rename("merge")
    assert infer("o", sources=["./merge"]) == 0
    assert cli.main(["merge"]) == 2
    assert "INPUT is missing" in capsys.readouterr().err
    assert json.loads(Path("o/images.json").read_text())["images"][0]["file_name"] == "merge"
