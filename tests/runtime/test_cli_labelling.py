"""yolact-infer --labelme and --label-studio."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import cli, load_engine
from yolact_runtime.sinks.jsonl import read_lines


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with an engine and images in two folders."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    for name in ("photos/a b.png", "photos/b.png", "photos/c.png", "other/b.png"):
        Path(name).parent.mkdir(exist_ok=True)
        size = (20, 30, 3) if name != "other/b.png" else (40, 10, 3)
        assert cv2.imwrite(name, np.full(size, 255, np.uint8))
    return tmp_path


def infer(*arguments):
    options = ["--engine", "m.onnx", "--threads", "1", "--quiet", "--no-json", "--no-overlay"]
    return cli.main([*options, *map(str, arguments)])


def read(path):
    return json.loads(Path(path).read_text())


def result_of(path):
    with load_engine("m.onnx") as engine:
        (result,) = engine.predict([cv2.imread(path)], score_threshold=0.15, top_k=15)
    assert len(result)
    return result


def test_labelme_files_name_their_image(place, capsys):
    assert infer("photos", "other", "--labelme", "out/labels") == 0
    assert "labelme files in out/labels" in capsys.readouterr().out
    files = sorted(path.name for path in Path("out/labels").iterdir())
    assert files == ["a b.json", "b.json", "b_2.json", "c.json"]
    images = {}
    for name in files:
        content = read(f"out/labels/{name}")
        images[name] = os.path.relpath(f"out/labels/{content['imagePath']}")
        height, width = cv2.imread(images[name]).shape[:2]
        assert (content["imageHeight"], content["imageWidth"]) == (height, width)
        assert content["shapes"] == result_of(images[name]).to_labelme("")["shapes"]
    assert images["b_2.json"] == "other/b.png" and images["a b.json"] == "photos/a b.png"


def test_labelme_files_go_next_to_the_images_with_masks(place):
    assert infer("photos", "--labelme", "photos", "--labelme-masks") == 0
    content = read("photos/c.json")
    assert content["imagePath"] == "c.png" and {one["shape_type"] for one in content["shapes"]} == {"mask"}
    assert infer("photos", "--labelme", "photos") == 0  # JSON files are no images
    assert sorted(path.suffix for path in Path("photos").iterdir()) == [".json"] * 3 + [".png"] * 3


def test_through_a_link_the_image_is_found(place):
    Path("deep/er").mkdir(parents=True)
    Path("link").symlink_to("deep/er")
    assert infer("photos/c.png", "--labelme", "link") == 0
    assert read("link/c.json")["imagePath"] == "../../photos/c.png"


def test_corrected_files_are_kept_unless_asked(place, capsys):
    Path("labels").mkdir()
    corrected = '{"imagePath": "../photos/b.png", "shapes": []}'
    Path("labels/b.json").write_text(corrected)
    assert infer("photos", "--labelme", "labels") == 0
    assert "labels: kept 1 labelme file; --labelme-overwrite" in capsys.readouterr().err.replace("\n", " ")
    assert Path("labels/b.json").read_text() == corrected and len(list(Path("labels").iterdir())) == 3
    assert infer("photos", "--labelme", "labels", "--labelme-overwrite") == 0
    assert "kept" not in capsys.readouterr().err
    assert read("labels/b.json")["shapes"]


def test_files_of_other_images_stay(place):
    for source in ("photos", "other", "photos", "other"):
        assert infer(source, "--labelme", "labels", "--labelme-overwrite") == 0
    images = {path.name: read(path)["imagePath"] for path in Path("labels").iterdir()}
    assert images == {
        "a b.json": "../photos/a b.png",
        "b.json": "../photos/b.png",
        "b_2.json": "../other/b.png",
        "c.json": "../photos/c.png",
    }


@pytest.mark.parametrize("more", [(), ("--labelme-overwrite",)])
@pytest.mark.parametrize("content", ["", "[1]", '{"imagePath": 7}', '{"exposure": 3}'])
def test_files_that_are_no_labelme_files_are_kept(place, content, more):
    Path("labels").mkdir()
    Path("labels/c.json").write_text(content)
    assert infer("photos/c.png", "--labelme", "labels", *more) == 0
    assert Path("labels/c.json").read_text() == content and len(list(Path("labels").iterdir())) == 1


@pytest.mark.parametrize("content", ['{"imagePath": "a\\u0000"}', '{"imagePath": ""}'])
def test_labelme_files_of_no_image_are_kept(place, content):
    Path("labels").mkdir()
    Path("labels/c.json").write_text(content)
    assert infer("photos/c.png", "--labelme", "labels") == 0
    assert Path("labels/c.json").read_text() == content and len(list(Path("labels").iterdir())) == 1


@pytest.mark.parametrize("options", [(), ("--polygons",), ("--polygons", "--polygon-tolerance", 0)])
def test_a_resumed_run_gives_the_same_files(place, options):
    sources = ["photos", "other"]
    kinds = ["--labelme", "labels", "--label-studio", "tasks.json", *options]
    assert infer(*sources, "--jsonl", "whole.jsonl", *kinds) == 0
    whole = {path.name: path.read_bytes() for path in [*Path("labels").iterdir(), Path("tasks.json")]}
    Path("tasks.json").unlink()
    for path in Path("labels").iterdir():
        path.unlink()
    # Killed after two images, and while the line of the third was not written yet.
    for name in ("a b.json", "b.json"):
        Path("labels", name).write_bytes(whole[name])
    lines = [raw for _, raw in read_lines(Path("whole.jsonl"))]
    Path("out.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:30])
    Path("labels/c.json").write_bytes(whole["c.json"])
    assert infer(*sources, "--jsonl", "out.jsonl", "--resume", *kinds) == 0
    again = {path.name: path.read_bytes() for path in [*Path("labels").iterdir(), Path("tasks.json")]}
    assert again == whole and Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_tasks_of_label_studio(place, capsys):
    Path("photos/d.png").write_text("no image")
    prefix = "/data/local-files/?d=shop"
    assert infer("photos", "other", "--label-studio", "new/tasks.json", "--label-studio-prefix", prefix) == 1
    assert "new/tasks.json, new/tasks.label_config.xml" in capsys.readouterr().out
    tasks = read("new/tasks.json")
    names = ["photos/a%20b.png", "photos/b.png", "photos/c.png", "other/b.png"]
    assert [task["data"] for task in tasks] == [{"image": f"{prefix}/{name}"} for name in names]
    for task, name in zip(tasks, names, strict=True):
        expected = result_of(name.replace("%20", " ")).to_label_studio(model_version="m.onnx")
        assert task["predictions"] == [expected] and len(expected["result"])
    assert "<BrushLabels" in Path("new/tasks.label_config.xml").read_text()
    assert infer("photos/b.png", "--label-studio", "tasks.json", "--polygons") == 0
    assert read("tasks.json")[0]["predictions"][0]["result"][0]["type"] == "polygonlabels"
    assert "<PolygonLabels" in Path("tasks.label_config.xml").read_text()


def test_tasks_go_to_standard_output(place, capsys):
    assert infer("photos", "--label-studio", "-") == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 3 and "3 images" in captured.err
    assert not list(place.glob("*.xml"))


def test_without_an_image_the_files_of_before_are_kept(place):
    Path("tasks.json").write_text("before")
    Path("broken.png").write_text("no image")
    assert infer("broken.png", "--label-studio", "tasks.json", "--labelme", "labels") == 1
    assert Path("tasks.json").read_text() == "before" and not Path("tasks.label_config.xml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labelme-masks"], "--labelme-masks needs the folder for labelme files: --labelme DIR"),
        (["--labelme-overwrite"], "--labelme-overwrite needs the folder for labelme files"),
        (
            ["--labelme", "x", "--polygon-tolerance", "101"],
            "--polygon-tolerance is 101.0; it must be in 0..100",
        ),
        (["--labelme", "x", "--polygon-tolerance", "nan"], "--polygon-tolerance is nan"),
        (["--label-studio", "photos/a.png"], "this is the name of another kind of file; JSON is written"),
        (["--label-studio", "x.json", "--jsonl", "x.json"], "write the same file x.json"),
        (
            ["rtsp://localhost/x", "--labelme", "x"],
            "--labelme needs image files, and a source is a video or camera",
        ),
        (["rtsp://localhost/x", "--label-studio", "x.json"], "--label-studio needs image files"),
        ([], "--labelme or --label-studio"),
    ],
)
def test_wrong_options_are_found_before_the_work(place, capsys, arguments, message):
    before = sorted(place.rglob("*"))
    assert infer("photos", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(place.rglob("*")) == before
