"""yolact-infer's masks, cut-outs and tables: options, videos, and runs that are killed and resumed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import cli

QUIET = ("--no-overlay", "--no-json")
ALL = ("--masks", "masks", "--cutouts", "cut", "--table", "t.csv")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an engine that finds two instances, a dog and a cat, and two images."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    write_images(2)
    return tmp_path


def write_images(count):
    """Images of several sizes and shades; scores follow the shade, so that some have one instance only."""
    Path("in").mkdir(exist_ok=True)
    for index in range(count):
        pixels = np.full((20 + index % 7, 30 + index % 5, 3), 255 - index * 37 % 180, np.uint8)
        assert cv2.imwrite(f"in/{index:04}.png", pixels)


def infer(*arguments):
    return cli.main(["--engine", "m.onnx", "--threads", "1", *map(str, arguments)])


def content(folder="."):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_all_outputs(place, capsys):
    assert infer("in", *QUIET, *ALL) == 0
    assert "; masks in masks; cut-outs in cut; t.csv" in capsys.readouterr().out
    assert [path.name for path in sorted(Path("masks").iterdir())] == ["0000.png", "0001.png"]
    labels = cv2.imread("masks/0000.png", cv2.IMREAD_UNCHANGED)
    assert labels[:, :15].all() and set(labels.flat) == {0, 1, 2}
    names = ["0000_0_dog.png", "0000_1_cat.png", "0001_0_dog.png", "0001_1_cat.png"]
    assert [path.name for path in sorted(Path("cut").iterdir())] == names
    with Path("t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["row"], row["class"]) for row in rows] == [
        (f"in/{name[:4]}.png", name[5], name[7:10]) for name in names
    ]
    # The masks overlap by the cells that they are cropped beyond their boxes.
    assert int(rows[0]["area"]) == (labels == 1).sum() and int(rows[1]["area"]) > (labels == 2).sum() > 0


def test_a_png_for_each_instance(place):
    assert infer("in", *QUIET, "--masks", "masks", "--masks-per-instance") == 0
    names = ["0000_0.png", "0000_1.png", "0001_0.png", "0001_1.png"]
    assert [path.name for path in sorted(Path("masks").iterdir())] == names
    assert set(cv2.imread("masks/0000_0.png", cv2.IMREAD_UNCHANGED).flat) == {0, 255}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--masks-per-instance",), "--masks-per-instance needs the folder of the masks: --masks DIR"),
        (("--masks", "x", "--cutouts", "./x"), "--masks and --cutouts write into the same folder x"),
        (("--masks", "results/overlays"), "--masks and overlays write into the same folder"),
        (("--cutouts", "x", "--output", "x"), "--cutouts and overlays write into the same folder"),
        (("--table", "t.xlsx"), "cannot write a table as t.xlsx; known suffixes are .csv, .parquet"),
        (("--table", "-"), "cannot write a table as -"),
        (("--masks", "-"), "files cannot go to standard output"),
        (("--table", "t.csv", "--jsonl", "t.csv"), "write the same file t.csv"),
        (("--table", "in/0000.csv"), "would write over in/0000.csv, which is an input"),
    ],
)
def test_options_that_do_not_fit(place, capsys, arguments, message):
    Path("in/0000.png").rename("in/0000.csv")
    before = content()
    assert infer("in/0000.csv", "--no-json", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert content() == before


def test_an_image_whose_cut_outs_would_have_too_long_names_fails_alone(place, capsys):
    Path("in/0000.png").rename(Path("in", "0" * 248 + ".png"))
    assert infer("in", *QUIET, *ALL, "--jsonl", "l.jsonl") == 1
    output = capsys.readouterr()
    assert "1 image, 2 detections, 1 failure" in output.out and "too long" in output.err
    assert [path.name for path in sorted(Path("cut").iterdir())] == ["0001_0_dog.png", "0001_1_cat.png"]
    assert Path("t.csv").read_text().count('"in/0001.png"') == 2


def test_frames_of_videos(place):
    pytest.importorskip("av")
    from videos import scene, write

    write(Path("c.mp4"), [scene()] * 2)
    assert infer("c.mp4", "in/0001.png", *QUIET, *ALL) == 0
    stems = ["0001", "c.mp4_0", "c.mp4_1"]
    assert [path.stem for path in sorted(Path("masks").iterdir())] == stems
    assert {path.stem.rsplit("_", 2)[0] for path in Path("cut").iterdir()} == set(stems)
    text = Path("t.csv").read_text()
    assert [text.count(f'"{name}"') for name in ("c.mp4#0", "c.mp4#1", "in/0001.png")] == [2, 2, 2]


def command(folder, suffix, *more):
    """The command with every output, into a folder."""
    outputs = {"output": "overlays", "json": "r.json", "coco-dataset": "d.json", "jsonl": "l.jsonl"}
    outputs |= {"arrays": "arrays", "masks": "masks", "cutouts": "cut", "table": f"t{suffix}"}
    named = [word for option, name in outputs.items() for word in (f"--{option}", f"{folder}/{name}")]
    call = [
        sys.executable,
        "-m",
        "yolact_runtime.cli",
        "--engine",
        "m.onnx",
        "--threads",
        "1",
        "--workers",
        "1",
    ]
    return [*call, "in", *named, "--batch-size", "3", *more]


def kill(words, lines, count):
    """Run a command and kill it as soon as its JSON Lines have so many lines."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") >= count):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("suffix", "more"),
    [(".csv", ["--polygons"]), (".parquet", ["--masks-per-instance"])],
    ids=["csv", "parquet"],
)
def test_a_run_that_is_killed_and_resumed_gives_the_same_files(place, suffix, more):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    write_images(120)
    subprocess.run(command("whole", suffix, *more), check=True, capture_output=True)
    lines = Path("parts/l.jsonl")
    kill(command("parts", suffix, *more), lines, 15)
    kill(command("parts", suffix, *more, "--resume"), lines, 50)
    assert not Path(f"parts/t{suffix}").exists() and not Path("parts/r.json").exists()
    done = subprocess.run(
        command("parts", suffix, *more, "--resume"), check=True, capture_output=True, text=True
    )
    assert "done before" in done.stdout
    whole, parts = content("whole"), content("parts")
    assert len(parts) > 480 and [path.relative_to("parts") for path in parts] == [
        path.relative_to("whole") for path in whole
    ]
    assert list(parts.values()) == list(whole.values())
    assert len(json.loads(Path("parts/r.json").read_text())) > 120
