"""yolact-infer with several live sources."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import videos
from camera_server import serving, stream
from fake_onnx import NATIVE, native_arrays, write_onnx
from pycocotools.coco import COCO

from yolact_runtime import cli

av = pytest.importorskip("av")
FILE = {"kind": "video/x-matroska", "whole": True}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with an engine, an image and a video."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    assert cv2.imwrite("a.png", np.full((20, 30, 3), 255, np.uint8))
    videos.write(Path("clip.mp4"), [videos.scene()] * 4)
    return tmp_path


@pytest.fixture
def two(tmp_path):
    """Two servers of videos with 12 and 7 frames."""
    clips = [videos.write(tmp_path / f"{n}.mkv", [videos.scene()] * n).read_bytes() for n in (12, 7)]
    with serving([clips[0]], **FILE) as first, serving([clips[1]], **FILE) as second:
        yield first, second


def infer(*arguments):
    return cli.main(["--engine", "m.onnx", "--threads", "1", "--no-drop-late", *map(str, arguments)])


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def names_of(*servers):
    return [f"http_127.0.0.1_{server.server_port}_live" for server in servers]


def test_each_source_has_its_own_outputs(place, two, capsys):
    sources = ["a.png", two[0].address, "clip.mp4", two[1].address]
    outputs = ["--jsonl", "out/l.jsonl", "--arrays", "arrays", "--coco-dataset", "set.json"]
    assert infer(*sources, *outputs, "--output", "out", "--batch-size", 3) == 0
    printed = capsys.readouterr().out
    names, counts = [*names_of(*two), "files"], [12, 7, 5]
    images = [
        [f"{server.shown}#{n}" for n in range(count)] for server, count in zip(two, counts, strict=False)
    ]
    images.append(["a.png", *(f"clip.mp4#{n}" for n in range(4))])
    for name, count, expected in zip(names, counts, images, strict=True):
        own = lines(f"out/{name}/l.jsonl")
        assert [line["image"] for line in own] == expected
        assert [line["index"] for line in own] == list(range(count))
        assert [line["image_id"] for line in own] == list(range(1, count + 1))
        assert all("source" not in line and len(line["detections"]) == 2 for line in own)
        truth = COCO(f"results/{name}/images.json")
        assert len(truth.loadRes(f"results/{name}/mask_detections.json").anns) == 2 * count
        assert len(COCO(f"{name}/set.json").imgs) == count
        assert len(list(Path("arrays", name).iterdir())) == count
    for name, count in [*zip(names, counts, strict=True)][:2]:
        assert len(videos.read(Path(f"out/{name}.mkv"))[0]) == count
    assert len(videos.read(Path("out/clip.mp4"))[0]) == 4 and Path("out/a.png").is_file()
    first, *rest = printed.splitlines()
    assert first.startswith("24 images, 48 detections, 0 failures; ")
    assert [line.partition(";")[0] for line in rest] == [
        f"{two[0].shown}: 12 images, 24 detections, 0 failures",
        f"{two[1].shown}: 7 images, 14 detections, 0 failures",
        "files: 5 images, 10 detections, 0 failures",
    ]
    assert f"out/{names[0]}.mkv" in rest[0] and "overlays in out" in rest[2]
    assert not [path for path in place.rglob("*") if "s3cret" in str(path)]


def test_lines_of_all_sources_on_standard_output(place, two, capsys):
    assert infer(two[0].address, two[1].address, "--jsonl", "-", "--no-json", "--no-overlay") == 0
    printed = capsys.readouterr()
    found = [json.loads(line) for line in printed.out.splitlines()]
    for name, count in zip(names_of(*two), (12, 7), strict=True):
        assert [line["index"] for line in found if line["source"] == name] == list(range(count))
    assert "7 images" in printed.err and len(found) == 19


def test_one_that_is_lost_for_good_and_one_that_comes_back(place, capsys):
    data = stream()
    with serving([data]) as lost, serving([data], [503], [data, "stall"]) as back:
        # The second one is silent in the end; it is lost when the time limits of the server are over.
        back.released.set()
        arguments = ["--reconnects", 1, "--jsonl", "l.jsonl", "--no-json", "--no-overlay"]
        assert infer(lost.address, back.address, *arguments) == 1
    first, second = (lines(f"{name}/l.jsonl") for name in names_of(lost, back))
    assert 35 < len(first) <= 41 and 35 < len(second) <= 41
    for some, server in ((first, lost), (second, back)):
        assert f"camera {server.shown} is lost after {len(some) - 1} frames" in some[-1]["error"]
        assert [line["index"] for line in some] == list(range(len(some)))
    assert "2 failures" in capsys.readouterr().out


def test_a_camera_that_is_not_there_costs_one_failure(place, two, capsys, monkeypatch):
    class Nothing:
        def __init__(self, device):
            pass

        def isOpened(self):  # noqa: N802 - OpenCV's name
            return False

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Nothing)
    assert infer("7", two[1].address, "--jsonl", "l.jsonl", "--no-json", "--no-overlay") == 1
    assert "camera:7: 0 images, 0 detections, 1 failure" in capsys.readouterr().out
    (failed,) = lines("camera_7/l.jsonl")
    assert failed["image"] == "camera:7" and "there is no such camera" in failed["error"]
    assert len(lines(f"{names_of(two[1])[0]}/l.jsonl")) == 7


def test_inputs_are_not_written_over(place, two, capsys):
    Path("camera_0").mkdir()
    Path("camera_0/x.json").write_text('{"images": [{"id": 1, "file_name": "a.png"}]}')
    before = Path("camera_0/x.json").read_bytes()
    assert infer("0", "camera:1", "--annotations", "camera_0/x.json", "--json", "x.json") == 2
    assert "--json would write over camera_0/x.json, which is an input" in capsys.readouterr().err
    assert infer("0", "1", "--json", "x.json", "--jsonl", "x.json") == 2
    assert "write the same file" in capsys.readouterr().err
    assert Path("camera_0/x.json").read_bytes() == before
    recording = Path(f"{names_of(two[0])[0]}.mkv")
    clip = videos.write(recording, [videos.scene()] * 3).read_bytes()
    assert infer(recording, two[0].address, "--output", ".", "--no-json") == 0
    assert recording.read_bytes() == clip
    assert len(videos.read(Path(f"{recording.stem}_2.mkv"))[0]) in (3, 12)
    assert len(videos.read(Path(f"{recording.stem}_3.mkv"))[0]) in (3, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0", "1", "--json", "-"], "--json -: several sources cannot share it; name a file"),
        (["0", "1", "--jsonl", "x.jsonl", "--resume", "--no-overlay"], "--resume cannot continue cameras"),
        (["0", "1", "--reconnects", "-1"], "--reconnects is -1; it must be in 0..1000000"),
        (["0", "1", "--arrays", "-"], "--arrays"),
    ],
)
def test_what_several_sources_cannot_do(place, capsys, arguments, message):
    assert infer(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
