"""Where yolact-infer writes: never over what it reads; to standard output, links and pipes."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx
from pycocotools.coco import COCO
from videos import scene, write

from yolact_runtime import cli

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an engine, three images in two folders and an annotation file."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    for name in ("one/a.png", "one/b.png", "two/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        assert cv2.imwrite(name, np.full((20, 30, 3), 255, np.uint8))
    Path("images.json").write_text(json.dumps({"images": [{"id": 4, "file_name": "a.png"}]}))
    return tmp_path


def infer(*arguments):
    return cli.main(["--engine", "m.onnx", "--threads", "1", *map(str, arguments)])


def command(*arguments):
    return [sys.executable, "-m", "yolact_runtime.cli", "--engine", "m.onnx", "--quiet", *map(str, arguments)]


def content(folder="."):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def load(path):
    return json.loads(Path(path).read_text())


QUIET = ("--no-overlay", "--no-json")


@pytest.mark.parametrize(
    "arguments",
    [
        ("one", "--no-overlay", "--json", "m.onnx"),
        ("one", *QUIET, "--jsonl", "m.onnx"),
        ("one", *QUIET, "--coco-dataset", "m.onnx"),
        ("one", *QUIET, "--jsonl", "one/a.png"),
        ("one/*.png", *QUIET, "--jsonl", "./one/../one/a.png"),
        ("one", "--no-overlay", "--json", "two/a.png"),
        ("one", "--no-overlay", "--annotations", "images.json", "--json", "images.json"),
        ("one", "--no-overlay", "--annotations", "images.json", "--json", "mask_detections.json"),
        ("one", "--no-overlay", "--annotations", "run_bbox.json", "--json", "run.json"),
        ("one", "--no-overlay", "--json", "x.json", "--jsonl", "x.json"),
        ("one", "--no-overlay", "--json", "run.json", "--coco-dataset", "run_images.json"),
        ("one", "--no-overlay", "--json", "-", "--jsonl", "-"),
        ("--image", "one/a.png:one/a.png"),
        ("--image", "one/a.png:./two/../one/a.png"),
        ("one", "--output", "-"),
        ("one", "--arrays", "-"),
        ("one", "--json", "a.npz"),
    ],
)
def test_inputs_and_outputs_that_are_one_file(place, capsys, arguments):
    shutil.copy("images.json", "run_bbox.json")
    before = content()
    assert infer(*arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert content() == before


@pytest.mark.parametrize("name", ["list.txt", "named.json"])
def test_a_list_and_what_it_names(place, name):
    Path("named.json").write_bytes(Path("one/a.png").read_bytes())
    Path("list.txt").write_text("one/b.png\r\nnamed.json\r\n")
    before = content()
    with Path("list.txt").open("rb") as stream:
        done = subprocess.run(command("-", *QUIET, "--jsonl", name), stdin=stream, capture_output=True)
    assert done.returncode == 2 and b"would write over" in done.stderr and content() == before


@pytest.mark.parametrize("names", ["\ufeffone/a.png\r\none/b.png\r\n", "\ufeff\r\none/a.png\none/b.png"])
def test_a_list_written_on_windows(place, names):
    done = subprocess.run(command("-", *QUIET, "--jsonl", "x.jsonl"), input=names.encode(), check=False)
    assert done.returncode == 0
    assert [json.loads(line)["image"] for line in Path("x.jsonl").read_text().splitlines()] == [
        "one/a.png",
        "one/b.png",
    ]
    done = subprocess.run(
        command("-", *QUIET, "--jsonl", "y.jsonl"), input=names.encode("utf-16"), capture_output=True
    )
    assert done.returncode == 1 and b"is in UTF-16; write it in UTF-8" in done.stderr


def test_all_videos_of_a_pattern_are_kept(place, capsys):
    Path("clips").mkdir()
    for name in ("a", "a_2"):
        write(Path(f"clips/{name}.mp4"), [scene()] * 3)
    before = content("clips")
    assert infer("clips/*.mp4", "--output", "clips", "--no-json") == 0
    after = content("clips")
    assert {path: after[path] for path in before} == before
    assert sorted(path.name for path in after.keys() - before.keys()) == ["a_2_2.mp4", "a_3.mp4"]


@posix
def test_images_behind_links_are_kept(place):
    Path("links").mkdir()
    Path("links/a.png").symlink_to("../one/a.png")
    before = content("one")
    assert infer("links", "--output", "one", "--no-json") == 0
    after = content("one")
    assert {path: after[path] for path in before} == before and len(after) == 3


@posix
@pytest.mark.parametrize("option", ["--json", "--jsonl", "--coco-dataset"])
def test_links_stay(place, option):
    Path("store").mkdir()
    Path("store/old").write_text("[]")
    Path("latest").symlink_to("store/old")
    off = () if option == "--json" else ("--no-json",)
    assert infer("one", "--no-overlay", *off, option, "latest") == 0
    assert Path("latest").is_symlink() and "segmentation" in Path("store/old").read_text()
    assert [path.name for path in Path("store").iterdir()] == ["old"]


@posix
@pytest.mark.parametrize("option", ["--json", "--jsonl", "--coco-dataset"])
def test_a_pipe_gets_what_a_file_would(place, option):
    os.mkfifo("pipe")
    off = () if option == "--json" else ("--no-json",)
    found = []
    reader = threading.Thread(target=lambda: found.append(Path("pipe").read_text()))
    reader.start()
    assert infer("one", "--no-overlay", *off, option, "pipe") == 0
    reader.join(10)
    assert infer("one", "--no-overlay", *off, option, "file") == 0
    assert Path("pipe").is_fifo() and found[0] == Path("file").read_text()
    assert not list(Path().glob("pipe?*"))


@posix
@pytest.mark.parametrize("target", ["-", "/dev/stdout", "link"])
@pytest.mark.parametrize("option", ["--json", "--jsonl", "--coco-dataset"])
def test_standard_output_has_the_json_only(place, option, target):
    Path("link").symlink_to("/proc/self/fd/1")
    if target != "-" and not Path(target).exists():
        pytest.skip("has no such device")
    off = () if option == "--json" else ("--no-json",)
    before = sorted(place.iterdir())
    done = subprocess.run(
        command("one", "--no-overlay", *off, option, target), capture_output=True, text=True, check=True
    )
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(entries) == (2 if option == "--jsonl" else 1)
    assert done.stderr.startswith("2 images, 4 detections")
    assert sorted(place.iterdir()) == before


def test_a_reader_that_leaves(place):
    process = subprocess.Popen(
        command("one", "--no-overlay", "--json", "-"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    errors = process.stderr.read().splitlines()
    assert process.wait() == 1
    assert errors[1:] == ["ERROR: standard output was closed by its reader; stopped"]


def test_resuming_needs_a_file(place, capsys):
    assert infer("one", *QUIET, "--jsonl", os.devnull, "--resume") == 2
    assert "--resume needs the file to continue" in capsys.readouterr().err


def test_folders_tell_images_of_one_name_apart(place):
    assert infer("one", "two", "--no-overlay", "--json", "r.json", "--coco-dataset", "d.json") == 0
    names = ["one/a.png", "one/b.png", "two/a.png"]
    assert [image["file_name"] for image in load("r_images.json")["images"]] == names
    assert [image["file_name"] for image in load("d.json")["images"]] == names
    assert infer("one", "--no-overlay", "--json", "r.json") == 0
    assert [image["file_name"] for image in load("r_images.json")["images"]] == ["a.png", "b.png"]
    listed = "\n".join(names).encode()
    subprocess.run(command("-", "--no-overlay", "--json", "r.json"), input=listed, check=True)
    found = [image["file_name"] for image in load("r_images.json")["images"]]
    assert found == ["a.png", "b.png", "../two/a.png"]


def test_a_dataset_is_resumed(place):
    options = ("--jsonl", "x.jsonl", *QUIET)
    assert infer("one", "two", *options, "--coco-dataset", "whole.json") == 0
    Path("x.jsonl").write_text("".join(Path("x.jsonl").read_text().splitlines(keepends=True)[:1]))
    assert infer("one", "two", *options, "--coco-dataset", "resumed.json", "--resume") == 0
    assert Path("resumed.json").read_text() == Path("whole.json").read_text()
    assert len(COCO("resumed.json").anns) == 6
