"""Files that cannot be written, writers that are killed, engines that fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_engine import FakeEngine, Found
from fake_onnx import NATIVE, native_arrays, write_onnx
from pycocotools.coco import COCO

from yolact_runtime import YolactError, cli
from yolact_runtime.sinks.growing import GrowingFile

COUNT = 12
FOUND = [Found((1, 1, 20, 20)), Found((30, 30, 50, 60), label=1)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in with an engine and a dozen images of one shade each."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    Path("photos").mkdir()
    for number in range(COUNT):
        assert cv2.imwrite(f"photos/{number:02}.png", np.full((20, 30, 3), 100 + number, np.uint8))
    return tmp_path


def infer(*arguments):
    return cli.main(
        ["--engine", "m.onnx", "--score-threshold", "0.1", "--workers", "2", *map(str, arguments)]
    )


def lines(path="out.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def errors(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("ERROR")]


@pytest.mark.parametrize("option", ["--output", "--json", "--jsonl", "--arrays"])
def test_a_place_below_a_file(place, capsys, option):
    Path("file").touch()
    target = "file/x" if option in ("--json", "--jsonl") else "file"
    assert infer("photos", option, target) == 1
    assert errors(capsys) == ["ERROR: cannot write to folder file: it is a file"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("photos", "--json", "taken"),
        ("photos", "--json", "run.json"),
        ("photos", "--jsonl", "taken"),
        ("--image", "photos/00.png:taken.png"),
    ],
)
def test_a_file_that_is_a_folder(place, capsys, arguments):
    for name in ("taken", "run_images.json", "taken.png"):
        Path(name).mkdir()
    assert infer(*arguments) == 2
    (message,) = errors(capsys)
    assert message.startswith("ERROR: cannot write ") and message.endswith("it is a folder; name a file")


def test_a_name_of_several_lines_is_logged_on_one(place, capsys):
    Path("photos/12\n\x1b[2J.png").write_bytes(b"damaged")
    assert infer("photos", "--no-overlay") == 1
    (message,) = errors(capsys)
    assert message == r"ERROR: image photos/12\n\x1b[2J.png is damaged or not an image; skipped"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_summary_that_cannot_be_written(place):
    with Path("/dev/full").open("w") as full:
        process = writer("photos", stdout=full, stderr=subprocess.PIPE, text=True)
        lines = process.communicate()[1].splitlines()
    assert lines[-1] == "ERROR: cannot write standard output: No space left on device"
    assert not any("Traceback" in line for line in lines)
    assert len(COCO("results/images.json").imgs) == COUNT - 1


def test_a_summary_in_an_encoding_without_its_letters(place):
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    process = writer("photos", "--json", "\u65e5.json", stdout=subprocess.PIPE, stderr=-3, env=environment)
    assert rb"\u65e5.json, \u65e5_bbox.json" in process.communicate()[0]


def test_lines_for_a_standard_output_that_is_closed(place, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert infer("photos", "--jsonl", "-") == 2
    assert errors(capsys) == ["ERROR: --jsonl - needs standard output, which is closed"]
    assert not Path("results/mask_detections.json").exists()


def test_an_output_that_is_read_only(place, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert infer("photos") == 1
    assert errors(capsys) == ["ERROR: cannot write to folder results: Permission denied"]


class Disk:
    """A fake for the file of a GrowingFile: the disk is full halfway through the n-th growing write."""

    left = 0

    def __init__(self, file):
        self.file = file

    def write(self, data):
        if len(data) <= os.fstat(self.file.fileno()).st_size - self.file.tell():
            return self.file.write(data)
        if Disk.left == 0:
            raise OSError(28, "No space left on device")
        Disk.left -= 1
        if Disk.left == 0 and len(data) > 1:
            return self.file.write(data[: len(data) // 2])
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("at", range(0, 4 * COUNT + 9, 3))
def test_a_disk_that_is_full_at_any_write(place, capsys, monkeypatch, at):
    Path("results").mkdir()
    for name in ("mask_detections.json", "bbox_detections.json", "images.json"):
        Path("results", name).write_text("null")
    init = GrowingFile.__init__
    monkeypatch.setattr(GrowingFile, "__init__", lambda self, file, *rest: init(self, Disk(file), *rest))
    Disk.left = at
    code = infer("photos", "--jsonl", "out.jsonl", "--no-overlay")
    found = errors(capsys)
    if code == 0:
        assert at >= 3 + 4 * COUNT and not found
    else:
        assert (
            len(found) == 1 and "No space left on device" in found[0] and found[0].startswith("ERROR: cannot")
        )
    masks = json.loads(Path("results/mask_detections.json").read_text())
    if masks is None:  # it was full before one image was in all three files
        assert at <= 6 and not list(Path("results").glob(".*")) and not lines()
        return
    done = [image["id"] for image in json.loads(Path("results/images.json").read_text())["images"]]
    assert done == list(range(1, len(done) + 1))
    boxes = json.loads(Path("results/bbox_detections.json").read_text())
    for entries in (masks, boxes):
        assert [entry["image_id"] for entry in entries] == [number for number in done for _ in range(2)]
    # The lines come last, so they may be one image behind.
    assert len(done) - len(lines()) in (0, 1)
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert infer("photos", "--jsonl", "out.jsonl", "--no-overlay", "--resume") == 0
    assert [line["image_id"] for line in lines()] == list(range(1, COUNT + 1))
    assert len(json.loads(Path("results/mask_detections.json").read_text())) == 2 * COUNT


def test_a_full_disk_for_overlays_and_arrays(place, capsys, monkeypatch):
    write = Path.write_bytes

    def full(path, data):
        if path.suffix == ".npz" and path.name.startswith(".05"):
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert infer("photos", "--arrays", "arrays", "--jsonl", "out.jsonl") == 1
    assert errors(capsys) == ["ERROR: cannot write arrays/05.npz: No space left on device"]
    assert sorted(p.name for p in Path("arrays").iterdir()) == [f"{n:02}.npz" for n in range(5)]
    assert len(COCO("results/images.json").imgs) in (5, 6)
    # An image with a line has all its files, so that resuming completes every image.
    assert [line["index"] for line in lines()] == list(range(5))
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert infer("photos", "--arrays", "arrays", "--jsonl", "out.jsonl", "--resume") == 0
    assert sorted(p.name for p in Path("arrays").iterdir()) == [f"{n:02}.npz" for n in range(COUNT)]
    assert len(COCO("results/images.json").imgs) == len(lines()) == COUNT


WRITER = """if True:
    import sys, time
    from functools import partial
    sys.path.insert(0, sys.argv[1])
    from fake_engine import FakeEngine, Found
    from yolact_runtime import cli, infer
    class Slow(FakeEngine):
        def detect(self, batch):
            time.sleep(0.002)
            return super().detect(batch)
    found = [Found((1, 1, 20, 20)), Found((30, 30, 50, 60), 1)]
    infer.open_engine = lambda args, streams: Slow(dict.fromkeys(range(256), found), broken=[105])
    cli.main(["--engine", "none", "--quiet", "--no-overlay", "--workers", "2", *sys.argv[2:]])
"""


def writer(*arguments, **options):
    tests = str(Path(__file__).parents[1])
    return subprocess.Popen([sys.executable, "-c", WRITER, tests, *map(str, arguments)], **options)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_killed_writers_and_resuming_end_as_if_nothing_had_been(place):
    Path("photos/02.png").write_bytes(b"damaged")
    arguments = ["photos", "--jsonl"]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    writer(*arguments, "whole.jsonl", "--json", "whole.json", **quiet).wait()
    assert len(lines("whole.jsonl")) == COUNT
    random = np.random.default_rng(0)
    seen = []
    for attempt in range(8):
        process = writer(*arguments, "out.jsonl", "--resume", "--json", "out.json", **quiet)
        deadline = time.monotonic() + 20
        # Wait until it writes, and then a moment.
        before = Path("out.jsonl").stat().st_mtime_ns if Path("out.jsonl").exists() else 0
        while time.monotonic() < deadline and process.poll() is None:
            if Path("out.jsonl").exists() and Path("out.jsonl").stat().st_mtime_ns != before:
                break
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.wait()
        text = Path("out.jsonl").read_bytes() if Path("out.jsonl").exists() else b""
        seen.append(text.count(b"\n"))
        if attempt % 2 and text:  # as if the kill had met the middle of a line
            Path("out.jsonl").write_bytes(text[: -len(text.splitlines()[-1]) // 2])
    assert writer(*arguments, "out.jsonl", "--resume", "--json", "out.json", **quiet).wait() == 0
    assert min(seen) < COUNT
    whole, resumed = Path("whole.jsonl").read_text(), Path("out.jsonl").read_text()
    assert sorted(resumed.splitlines()) == sorted(whole.splitlines())
    for suffix in ("", "_bbox", "_images"):
        first, second = (json.loads(Path(f"{n}{suffix}.json").read_text()) for n in ("whole", "out"))
        if suffix == "_images":
            first, second = first["images"], second["images"]
        assert sorted(map(json.dumps, second)) == sorted(map(json.dumps, first))


def test_two_runs_cannot_write_the_same_lines(place, capsys):
    reader, stdin = os.pipe()
    with writer("-", "--jsonl", "out.jsonl", stdin=reader, stdout=-3, stderr=-3) as first:
        os.close(reader)
        os.write(stdin, b"photos/00.png\n")
        deadline = time.monotonic() + 60
        while not (Path("out.jsonl").exists() and lines()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for more in ([], ["--resume"]):
            assert infer("photos", "--jsonl", "out.jsonl", "--json", "other.json", *more) == 1
            message = "another run writes to out.jsonl; wait for it, or name another file"
            assert errors(capsys) == [f"ERROR: {message}"]
        assert not Path("other.json").exists()
        os.close(stdin)
        assert first.wait() == 0
    assert len(lines()) == 1


def test_standard_output_closed_by_its_reader(place):
    reader, output = os.pipe()
    os.close(reader)
    some = "photos/0[0-4].png"  # without the one that the engine fails on, perhaps before the first line
    with writer(some, "--jsonl", "-", stdout=output, stderr=subprocess.PIPE, text=True) as process:
        os.close(output)
        printed = process.communicate()[1].splitlines()
    assert [line for line in printed if line.startswith("ERROR")] == [
        "ERROR: standard output was closed by its reader; stopped"
    ]
    assert printed[0].startswith("0 images") and "Traceback" not in printed and len(printed) == 2
    # Its line comes last, so the first image is in the files all the same.
    assert list(COCO("results/images.json").imgs) == [1]


def use(monkeypatch, broken):
    engine = FakeEngine(dict.fromkeys(range(256), FOUND), max_batch=4, broken=broken)
    monkeypatch.setattr("yolact_runtime.infer.open_engine", lambda args, streams: engine)


def test_an_engine_that_fails_on_one_image(place, capsys, monkeypatch):
    use(monkeypatch, [105])
    assert infer("photos", "--batch-size", 4, "--jsonl", "out.jsonl") == 1
    assert errors(capsys) == ["ERROR: photos/05.png: cannot look at shade 105; skipped"]
    assert [line["image_id"] for line in lines() if "error" not in line] == [
        1,
        2,
        3,
        4,
        5,
        *range(7, COUNT + 1),
    ]
    (failed,) = [line for line in lines() if "error" in line]
    assert failed == {
        "image": "photos/05.png",
        "index": 5,
        "error": "photos/05.png: cannot look at shade 105",
    }


def test_an_engine_that_fails_on_all(place, capsys, monkeypatch):
    for number in range(200):
        Path(f"photos/x{number}.png").hardlink_to("photos/00.png")
    use(monkeypatch, range(256))
    assert infer("photos") == 1
    found = errors(capsys)
    assert len(found) == 11 and "failed on 10 images in a row; the rest is skipped" in found[-1]
    assert json.loads(Path("results/mask_detections.json").read_text()) == []


def test_a_run_that_does_nothing_leaves_earlier_results(place, capsys, monkeypatch):
    use(monkeypatch, [])
    assert infer("photos", "--no-overlay") == 0
    before = {path: path.read_bytes() for path in Path("results").iterdir()}
    assert len(before) == 3
    capsys.readouterr()
    use(monkeypatch, range(256))
    assert infer("photos", "--no-overlay") == 1
    printed = capsys.readouterr()
    assert "WARNING: no image was done: results/mask_detections.json and" in printed.err
    assert ".json" not in printed.out
    assert {path: path.read_bytes() for path in Path("results").iterdir()} == before
    # One processed image, even without detections, replaces the files.
    use(monkeypatch, range(101, 256))
    assert infer("photos", "--no-overlay") == 1
    assert len(COCO("results/images.json").imgs) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[1]\n",
        "photo\n",
        "no line end",
        '{"image": "a"}\n',
        '{"image": "a", "error": "b"}\n[]\n',
        "\0\0\0\n",
        "7\n",
    ],
)
def test_resuming_what_is_something_else_leaves_it_alone(place, capsys, text):
    Path("out.jsonl").write_text(text)
    assert infer("photos", "--jsonl", "out.jsonl", "--resume") == 1
    assert "cannot resume out.jsonl: line" in errors(capsys)[0]
    assert Path("out.jsonl").read_text() == text


def test_a_raw_write_that_is_short_goes_on(tmp_path):
    path = tmp_path / "x"
    with path.open("w+b", buffering=0) as raw:
        Disk.left = 1
        file = GrowingFile(Disk(raw), path)
        with pytest.raises(YolactError, match="No space left"):
            file.append(b"abcdef")
        assert path.read_bytes() == b""
        Disk.left = -1
        file.append(b"abc")
    assert path.read_bytes() == b"abc"
