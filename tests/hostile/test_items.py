"""Images whose own outputs cannot be written, and lines of a resumed run that somebody changed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_engine import SIZE, FakeEngine, Found, write_image
from pycocotools.coco import COCO

from yolact_runtime import YolactError, cli, infer
from yolact_runtime.errors import ItemError
from yolact_runtime.frames import Frame
from yolact_runtime.sinks.per_image.arrays import ArraySink
from yolact_runtime.sinks.per_image.overlays import OverlaySink

FOUND = [Found((1, 1, 20, 20)), Found((30, 30, 50, 60), label=1)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs yolact-infer on four images in a folder."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        write_image(Path(f"photos/{number}.png"), 100 + number)
    engine = FakeEngine(dict.fromkeys(range(256), FOUND))
    monkeypatch.setattr(infer, "open_engine", lambda args, streams: engine)
    return lambda *more: cli.main(["--engine", "none", "--quiet", "photos", "--jsonl", "out.jsonl", *more])


def errors(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("ERROR")]


def test_an_image_whose_files_are_taken_by_folders_fails_alone(run, capsys):
    Path("overlays/1.png").mkdir(parents=True)
    Path("arrays/2.npz").mkdir(parents=True)
    options = ["--output", "overlays", "--arrays", "arrays", "--json", "run.json"]
    for more in ([], ["--resume"]):
        assert run(*options, *more) == 1
        assert errors(capsys) == [
            f"ERROR: photos/{name}: cannot write {path}: it is a folder; name a file; skipped"
            for name, path in (("1.png", "overlays/1.png"), ("2.png", "arrays/2.npz"))
        ]
        lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        assert sorted(line["image"] for line in lines if "error" in line) == ["photos/1.png", "photos/2.png"]
        assert len(lines) == 4 and sorted(COCO("run_images.json").imgs) == [1, 4]
    Path("overlays/1.png").rmdir()
    Path("arrays/2.npz").rmdir()
    assert run(*options, "--resume") == 0
    assert sorted(COCO("run_images.json").imgs) == [1, 2, 3, 4]
    assert {path.name for path in Path("overlays").iterdir()} == {f"{number}.png" for number in range(4)}


@pytest.mark.parametrize("name", ["a" * 255, "\u65e5" * 85, "a" * 252])
@pytest.mark.parametrize("kind", [ArraySink, OverlaySink])
def test_a_name_that_is_too_long_fails_alone(tmp_path, kind, name):
    sink = kind(tmp_path)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    result = FakeEngine({}).predict([image])[0]
    for path, fails in ((Path("x.png"), False), (Path(name), True), (Path("y.png"), False)):
        frame = Frame(0, str(path), path, lambda: image)
        prepared = sink.prepare(frame, image, result)
        if fails:
            with pytest.raises(ItemError, match="File name too long"):
                sink.write(frame, prepared)
        else:
            sink.write(frame, prepared)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["x", "y"]


def test_a_name_is_free_again_after_its_failure(tmp_path):
    (tmp_path / "a.npz").mkdir()
    sink = ArraySink(tmp_path)
    frames = [
        Frame(index, name, Path(name), lambda: None) for index, name in enumerate(("x/a.png", "y/a.png"))
    ]
    for frame in frames:
        with pytest.raises(ItemError):
            sink.write(frame, b"")
    (tmp_path / "a.npz").rmdir()
    for frame in frames:
        sink.write(frame, b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a_2.npz"]


def test_a_folder_that_takes_nothing_ends_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(YolactError) as caught:
        ArraySink(tmp_path / "file/below").write(Frame(0, "a.png", Path("a.png"), lambda: None), b"")
    assert not isinstance(caught.value, ItemError)


CHANGES = {
    "size of a mask": ("segmentation", {"size": [0, 0], "counts": "0"}),
    "huge mask": ("segmentation", {"size": [1 << 30, 1 << 30], "counts": "0"}),
    "counts": ("segmentation", {"size": [SIZE, SIZE], "counts": "z\u1234"}),
    "huge polygon": ("segmentation", [[1e9, 1e9, -1e9, 1e9, 5, 5]]),
    "empty polygon": ("segmentation", [[]]),
    "no mask": ("segmentation", None),
    "box": ("bbox", [1, 2, 3]),
    "score": ("score", float("nan")),
    "number": ("score", 10**400),
    "category": ("category_id", "1"),
    "image": ("image_id", 77),
    "depth": ("more", json.loads("[" * 80 + "]" * 80)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_lines_are_refused_and_kept(run, capsys, change):
    assert run("--no-overlay", "--no-json") == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    key, value = CHANGES[change]
    lines[2]["detections"][0][key] = value
    lines[1] = {"image": "photos/1.png", "index": 1, "error": "a failure that would be dropped"}
    Path("out.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    before = Path("out.jsonl").read_bytes()
    assert run("--no-overlay", "--coco-dataset", "set.json", "--resume") == 1
    (line,) = errors(capsys)
    assert line.startswith("ERROR: cannot resume out.jsonl: line 3 was not written by yolact-infer")
    assert Path("out.jsonl").read_bytes() == before


@pytest.mark.parametrize("end", [b'{"image": "a", "other": 1}', b"\0" * 9, b"[" * 100_000, b"x" * 1_000_000])
def test_a_last_line_without_its_end(run, capsys, end):
    assert run("--no-overlay", "--no-json") == 0
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(whole + end)
    assert run("--no-overlay", "--no-json", "--resume") == 1
    assert Path("out.jsonl").read_bytes() == whole + end
    for cut in (1, 30, len(whole.splitlines()[-1])):  # as a killed run leaves it
        Path("out.jsonl").write_bytes(whole[:-cut])
        assert run("--no-overlay", "--no-json", "--resume") == 0
        assert Path("out.jsonl").read_bytes() == whole


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text")
def test_names_that_are_no_text_are_resumed(run):
    write_image(Path("photos/plain.png"), 1)
    Path("photos/plain.png").rename("photos/\udcff\u65e5.png")
    assert run("--no-overlay", "--no-json") == 0
    before = Path("out.jsonl").read_bytes()
    assert run("--no-overlay", "--no-json", "--resume") == 0
    assert Path("out.jsonl").read_bytes() == before
