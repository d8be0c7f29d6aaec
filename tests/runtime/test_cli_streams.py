"""yolact-infer with lists, lines, arrays, batches, and interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import cli


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with an engine and five images."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    Path("photos").mkdir()
    for name in "abcde":
        assert cv2.imwrite(f"photos/{name}.png", np.full((20, 30, 3), 255, np.uint8))
    return tmp_path


def infer(*arguments):
    return cli.main(["--engine", "m.onnx", "--threads", "1", *map(str, arguments)])


def process(*arguments, **options):
    command = [
        sys.executable,
        "-m",
        "yolact_runtime.cli",
        "--engine",
        "m.onnx",
        "--quiet",
        "--no-overlay",
        *arguments,
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, **options)


def lines(path="out.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("options", [(), ("--batch-size", 3, "--workers", 3, "--deadline-ms", 0)])
def test_every_output_at_once(place, capsys, options):
    assert infer("photos", "--jsonl", "out.jsonl", "--arrays", "arrays", *options) == 0
    printed = capsys.readouterr().out
    assert "images/s" in printed and "out.jsonl" in printed and "arrays in arrays" in printed
    assert [line["image"] for line in lines()] == [f"photos/{name}.png" for name in "abcde"]
    found = [entry for line in lines() for entry in line["detections"]]
    assert found and all(len(entry.pop("centroid")) == 2 for entry in found)  # only the lines have it
    assert json.loads(Path("results/mask_detections.json").read_text()) == found
    assert len(list(Path("arrays").iterdir())) == len(list(Path("results/overlays").iterdir())) == 5


def test_resuming_leaves_files_of_images_with_the_same_name(place):
    Path("other").mkdir()
    assert cv2.imwrite("other/a.png", np.zeros((40, 10, 3), np.uint8))
    arguments = ["--jsonl", "out.jsonl", "--arrays", "arrays", "--output", "drawn", "--no-json"]
    assert infer("photos/a.png", *arguments) == 0
    assert infer("photos/a.png", "other/a.png", *arguments, "--resume") == 0
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["a.png", "a_2.png"]
    assert [cv2.imread(f"drawn/{name}.png").shape[:2] for name in ("a", "a_2")] == [(20, 30), (40, 10)]
    archives = [np.load(f"arrays/{name}.npz", allow_pickle=False) for name in ("a", "a_2")]
    assert [str(archive["image"]) for archive in archives] == ["photos/a.png", "other/a.png"]


def test_an_output_that_is_new_to_a_resumed_run_is_named_in_a_warning_and_not_as_written(place, capsys):
    arguments = ["photos/a.png", "--jsonl", "out.jsonl", "--no-json", "--no-overlay", "--arrays", "arrays"]
    assert infer(*arguments) == 0
    capsys.readouterr()
    assert infer(*arguments, "--masks", "masks", "--resume") == 0
    printed = capsys.readouterr()
    assert "masks is new: the images that are done have no files there" in printed.err
    assert "arrays in arrays" in printed.out and "masks in" not in printed.out
    assert "arrays is new" not in printed.err


OTHERS = "--score-threshold 0.2", "--top-k 3", "--classes cat", "--tile 64 --tile-overlap 0.3", "--polygons"


@pytest.mark.parametrize("other", OTHERS)
def test_what_was_found_in_another_way_is_not_resumed(place, capsys, other):
    arguments = ["photos", "--jsonl", "out.jsonl", "--no-json", "--no-overlay"]
    assert infer(*arguments) == 0
    before = Path("out.jsonl").read_bytes()
    assert infer(*arguments, "--resume", *other.split()) == 1
    assert (
        "cannot resume out.jsonl: it was written with another engine, --score-th" in capsys.readouterr().err
    )
    assert Path("out.jsonl").read_bytes() == before
    Path("out.jsonl").write_bytes(re.sub(b'"run": "[0-9a-f]{8}", ', b"", before))  # of an earlier version
    assert infer(*arguments, "--resume", *other.split()) == 0


def test_another_engine_of_the_same_name_does_not_resume(place, capsys):
    arguments = ["photos", "--jsonl", "out.jsonl", "--no-json", "--no-overlay"]
    assert infer(*arguments) == 0
    write_onnx("m.onnx", native_arrays(), replace(NATIVE, weights_sha256="1" * 64))
    assert infer(*arguments, "--resume") == 1
    assert "cannot resume out.jsonl" in capsys.readouterr().err


def test_the_same_in_other_words_is_resumed(place):
    arguments = ["photos", "--jsonl", "out.jsonl", "--no-json", "--no-overlay", "--tile", "64"]
    assert infer(*arguments, "--classes", "cat", "dog") == 0
    assert infer(*arguments, "--tile-overlap", "0.2", "--classes", "dog", "cat", "cat", "--resume") == 0


def test_resuming_gives_an_id_to_one_image_only(place, capsys):
    Path("other").mkdir()
    Path("other/a.png").hardlink_to("photos/a.png")
    Path("ids.json").write_text(json.dumps({"images": [{"id": 7, "file_name": "a.png"}]}))
    arguments = ["photos/a.png", "other/a.png", "--annotations", "ids.json", "--jsonl", "out.jsonl"]
    assert infer(*arguments) == 1
    results = [Path("results", name) for name in ("images.json", "mask_detections.json")]
    before = [path.read_bytes() for path in results]
    assert [image["id"] for image in json.loads(before[0])["images"]] == [7]
    assert infer(*arguments, "--resume") == 0
    assert [path.read_bytes() for path in results] == before


def test_lines_only(place):
    assert infer("photos", "--jsonl", "out.jsonl", "--no-json", "--no-overlay") == 0
    assert len(lines()) == 5 and not Path("results").exists()


def test_lines_on_standard_output_are_alone_there(place):
    with process("photos", "--jsonl", "-", "--no-json") as run:
        output, errors = run.communicate()
    assert run.returncode == 0
    assert [json.loads(line)["index"] for line in output.splitlines()] == [0, 1, 2, 3, 4]
    assert errors.startswith("5 images") and errors.count("\n") == 1


def test_a_list_is_answered_line_by_line(place):
    with process("-", "--jsonl", "-", "--no-json") as run:
        for name in "ab":
            run.stdin.write(f"photos/{name}.png\n")
            run.stdin.flush()
            assert json.loads(run.stdout.readline())["image"] == f"photos/{name}.png"
        run.stdin.close()
        assert run.wait() == 0


def test_a_list_separated_by_nul(place):
    Path("photos/a.png").rename("photos/a\nb.png")
    with process("-", "--null", "--jsonl", "-", "--no-json") as run:
        output, _ = run.communicate("photos/a\nb.png\0photos/c.png")
    assert [json.loads(line)["image"] for line in output.splitlines()] == ["photos/a\nb.png", "photos/c.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGINT for one process")
def test_ctrl_c_while_waiting_for_a_list(place):
    with process("-", "--jsonl", "-") as run:
        run.stdin.write("photos/a.png\n")
        run.stdin.flush()
        run.stdout.readline()
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(30) == 130
        errors = run.stderr.read()
    assert "Traceback" not in errors
    assert errors.splitlines()[1:] == [
        "1 image, 2 detections, 0 failures; " + errors.split("failures; ")[1].partition("\n")[0],
        "ERROR: interrupted: the results of the images done so far are written",
    ]
    assert len(json.loads(Path("results/mask_detections.json").read_text())) == 2
    assert not list(Path("results").glob(".*"))


def test_resuming(place, capsys):
    assert infer("photos/a.png", "photos/c.png", "--jsonl", "out.jsonl", "--no-overlay") == 0
    assert infer("photos/[a-d].png", "--jsonl", "out.jsonl", "--no-overlay", "--resume") == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[1]
        .startswith("2 images, 4 detections, 0 failures; 2 done before")
    )
    assert [line["image"] for line in lines()] == [f"photos/{name}.png" for name in "acbd"]
    numbers = [line["image_id"] for line in lines()]
    assert len(set(numbers)) == 4
    entries = json.loads(Path("results/mask_detections.json").read_text())
    assert [entry["image_id"] for entry in entries] == [n for n in numbers for _ in range(2)]
    assert infer("photos", "--jsonl", "new.jsonl", "--resume") == 0  # nothing to resume is no fault
    assert len(lines("new.jsonl")) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume needs the file to continue: --jsonl FILE"),
        (["--resume", "--jsonl", "-"], "--resume needs the file"),
        (["--no-json", "--no-overlay"], "nothing would be written"),
        (["--workers", "0"], "--workers is 0; it must be 1 or more"),
        (["--deadline-ms", "-1"], "--deadline-ms is -1.0; it must be in 0..60000"),
        (["--deadline-ms", "nan"], "--deadline-ms is nan"),
        (["--streams", "none"], "--streams: 'none' is neither auto nor a number of 1 or more"),
    ],
)
def test_wrong_use(place, capsys, arguments, message):
    assert infer("photos", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("results").exists()


def test_overlays_never_replace_what_a_list_may_name(place):
    before = Path("photos/a.png").read_bytes()
    command = [sys.executable, "-m", "yolact_runtime.cli", "--engine", "m.onnx", "-", "--output", "photos"]
    subprocess.run(command, input=b"photos/a.png\n", check=True, capture_output=True)
    assert Path("photos/a.png").read_bytes() == before and Path("photos/a_2.png").exists()
