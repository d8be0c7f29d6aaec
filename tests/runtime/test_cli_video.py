"""yolact-infer on a video, between images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import cli

av = pytest.importorskip("av")
FRAMES = 12


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with an engine, an image and a video of white frames."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    white = np.full((48, 64, 3), 255, np.uint8)
    assert cv2.imwrite("a.png", white)
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(white, format="bgr24")))
        container.mux(stream.encode(None))
    return tmp_path


def infer(*arguments):
    return cli.main(["--engine", "m.onnx", "--threads", "1", "--workers", "3", *map(str, arguments)])


def lines():
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def test_a_video_between_images(place, capsys):
    sources = ["a.png", "clip.mp4", "a.png"]
    assert infer(*sources, "--jsonl", "out.jsonl", "--video-output", "videos") == 0
    assert capsys.readouterr().out.startswith(f"{FRAMES + 2} images")
    names = [line["image"] for line in lines()]
    assert names == ["a.png", *(f"clip.mp4#{n}" for n in range(FRAMES)), "a.png"]
    assert [line["time"] for line in lines()[1:-1]] == [n / 10 for n in range(FRAMES)]
    assert [line["index"] for line in lines()] == list(range(FRAMES + 2))
    with av.open("videos/clip.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES
    assert sorted(path.name for path in Path("results/overlays").iterdir()) == ["a.png", "a_2.png"]


def test_resuming_a_video(place, capsys):
    assert infer("clip.mp4", "--jsonl", "out.jsonl", "--no-overlay") == 0
    whole = Path("out.jsonl").read_text()
    Path("out.jsonl").write_text(whole[: len(whole) // 2])
    assert infer("clip.mp4", "--jsonl", "out.jsonl", "--resume") == 2
    assert "--resume cannot continue an annotated video; add --no-overlay" in capsys.readouterr().err
    assert infer("clip.mp4", "--jsonl", "out.jsonl", "--resume", "--no-overlay") == 0
    assert Path("out.jsonl").read_text() == whole


def test_broken_videos_do_not_stop_the_rest(place, capsys):
    Path("none.mp4").write_bytes(b"nothing of the kind")
    whole = Path("clip.mp4").read_bytes()
    Path("cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert infer("none.mp4", "clip.mp4", "cut.mp4", "a.png", "--jsonl", "out.jsonl") == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{FRAMES + 1} images") and "2 failures" in printed.out
    assert printed.err.count("none.mp4") == printed.err.count("cut.mp4") == 1
    failed = [line for line in lines() if "error" in line]
    assert [line["image"] for line in failed] == ["none.mp4", "cut.mp4"]
    assert lines()[-1]["image"] == "a.png"
    assert infer("none.mp4") == 1
    assert "none.mp4" in capsys.readouterr().err


def test_a_pattern_of_videos_and_images(place):
    Path("clips").mkdir()
    for name in ("clips/b.mp4", "clips/notes.txt"):
        Path(name).write_bytes(Path("clip.mp4").read_bytes())
    assert cv2.imwrite("clips/a.png", np.full((48, 64, 3), 255, np.uint8))
    assert infer("clips/*", "--jsonl", "out.jsonl", "--no-overlay") == 0
    assert [line["image"] for line in lines()] == [
        "clips/a.png",
        *(f"clips/b.mp4#{n}" for n in range(FRAMES)),
    ]
