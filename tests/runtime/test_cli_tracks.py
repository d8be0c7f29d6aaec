"""yolact-infer --track on videos as telephones make them, and on images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import videos
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import cli

WHITE = np.full((48, 64, 3), 255, np.uint8)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with an engine that finds two still objects, of which one has a low score."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    return tmp_path


def infer(*arguments):
    return cli.main(["--engine", "m.onnx", "--threads", "1", "--workers", "2", *map(str, arguments)])


def tracks(path="out.jsonl"):
    """The tracks of each line, by category."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [{entry["category_id"]: entry["track_id"] for entry in line["detections"]} for line in lines]


def test_a_video_of_a_telephone(place, capsys):
    pytest.importorskip("trackers")
    av = pytest.importorskip("av")
    times = [0, 0.033, 0.067, 0.15, 0.2, 0.4, 0.433, 0.466, 0.5, 0.9]
    path = videos.write(place / "clip.mp4", [WHITE] * len(times), times, rate=30, sound="aac")
    videos.turn(path, (0, 1, -1, 0))
    assert infer("clip.mp4", "--track", "--jsonl", "out.jsonl", "--output", "out", "--json", "out.json") == 0
    assert "10 images, 20 detections, 0 failures" in capsys.readouterr().out
    assert tracks() == [{7: -1, 0: -1}, *[{7: 1, 0: -1}] * 9]
    entries = json.loads(Path("out.json").read_text()), json.loads(Path("out_bbox.json").read_text())
    assert [entry["track_id"] for entry in entries[0] if entry["category_id"] == 7] == [-1, *[1] * 9]
    assert [entry["track_id"] for entry in entries[1]] == [entry["track_id"] for entry in entries[0]]
    with av.open("out/clip.mp4") as container:
        assert container.streams.audio
        shapes = [frame.to_ndarray(format="bgr24").shape for frame in container.decode(video=0)]
    assert shapes == [(64, 48, 3)] * len(times)


def test_two_videos_have_tracks_of_their_own(place):
    pytest.importorskip("trackers")
    pytest.importorskip("av")
    for name in ("a.mp4", "b.mp4"):
        videos.write(place / name, [WHITE] * 3)
    arguments = ["--track", "--track-score", 0.1, "--jsonl", "out.jsonl", "--no-overlay", "--no-json"]
    assert infer("a.mp4", "b.mp4", *arguments) == 0
    seen = [set(line.values()) for line in tracks()]
    assert seen == [{-1}, {1, 2}, {1, 2}, {-1}, {3, 4}, {3, 4}]


def test_the_images_of_a_folder_are_frames(place):
    pytest.importorskip("trackers")
    Path("frames").mkdir()
    for number in range(5):
        assert cv2.imwrite(f"frames/{number}.png", WHITE)
    Path("frames/2.png").write_bytes(b"damaged")
    arguments = ["--track", "--jsonl", "out.jsonl", "--output", "out", "--arrays", "arrays", "--no-json"]
    assert infer("frames", *arguments) == 1
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert "error" in lines.pop(2)
    assert [line["detections"][0]["track_id"] for line in lines] == [-1, 1, 1, 1]
    with np.load("arrays/4.npz") as arrays:
        assert arrays["track_ids"].tolist() == [1, -1]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--track-memory 2", "--track-memory needs --track"),
        ("--track-score 0.5", "--track-score needs --track"),
        ("--track --track-memory -1", "--track-memory is -1.0; it must be in 0..3600 seconds"),
        ("--track --track-memory nan", "--track-memory is nan; it must be in 0..3600 seconds"),
        ("--track --track-score 2", "--track-score is 2.0; it must be in 0..1"),
        ("--track --jsonl out.jsonl --resume", "--resume cannot continue tracks"),
    ],
)
def test_options_that_do_not_fit(place, capsys, words, text):
    assert infer("frames", *words.split()) == 2
    assert text in capsys.readouterr().err
