"""`open_source`."""

import io
import os
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.frames import Source
from yolact_runtime.sources.listing import ListSource
from yolact_runtime.sources.open import RemainingSource, has_video, image_folders, open_source
from yolact_runtime.sources.several import ChainSource


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "sub/c.png"):
        Path(name).parent.mkdir(exist_ok=True)
        assert cv2.imwrite(name, np.full((2, 3, 3), 7, np.uint8))
    return tmp_path


def names(source):
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    return [frame.name for frame in frames]


def test_images_folders_and_patterns_in_order(place):
    source = open_source(["sub", "b.png", "*.png"])
    assert source.total == 3 and not source.live and not has_video(source)
    assert names(source) == ["sub/c.png", "b.png", "a.png"]
    assert (next(iter(source)).read() == 7).all()
    assert image_folders(source) == {str(place), str(place / "sub")}


def test_one_file_under_two_names_counts_once(place):
    Path("same").symlink_to("sub")
    assert names(open_source(["sub", "same", f"{place}/sub/c.png"])) == ["sub/c.png"]


def test_one_file_in_two_folders_of_a_pattern_counts_once(place):
    Path("same").symlink_to("sub")
    assert names(open_source(["s*/*.png"])) == ["same/c.png"]


def test_a_link_to_an_image_is_an_image(place):
    Path("d.png").symlink_to("a.png")
    assert names(open_source(["."])) == ["a.png", "b.png", "d.png"]


def test_a_list_in_the_middle(place):
    source = open_source(["a.png", "-", "b.png"], io.BytesIO(b"sub/c.png\n"))
    assert isinstance(source, ChainSource) and source.total is None
    frames = list(source)
    assert [(frame.name, frame.source) for frame in frames] == [("a.png", 0), ("sub/c.png", 1), ("b.png", 2)]
    assert image_folders(source) is None


@pytest.mark.parametrize(
    ("text", "null", "expected"),
    [
        (b"a.png\n\n  \r\n#1.png\r\n x.png\nlast.png", False, ["a.png", "#1.png", " x.png", "last.png"]),
        (b"a\nb.png\0\0c.png\0", True, ["a\nb.png", "c.png"]),
        (b"", False, []),
        (b"\xff.png\n", False, [os.fsdecode(b"\xff.png")]),
        (b"x" * 200_000 + b".png\ny.png", False, ["x" * 100, "y.png"]),
    ],
)
def test_lists(text, null, expected):
    assert names(open_source(["-"], io.BytesIO(text), null)) == expected


def test_a_list_from_a_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input, which is closed"):
        open_source(["-"])


def test_a_list_is_worked_on_before_it_ends():
    read, write = os.pipe()
    with open(read, "rb") as stream:  # noqa: PTH123
        frames = iter(ListSource(stream))
        os.write(write, b"a.png\nb.p")
        assert next(frames).name == "a.png"
        os.write(write, b"ng\n")
        assert next(frames).name == "b.png"
        os.close(write)
        assert list(frames) == []


def test_a_list_that_never_comes_can_be_closed():
    read, write = os.pipe()
    with open(read, "rb") as stream:  # noqa: PTH123
        source = ListSource(stream)
        got = []
        thread = threading.Thread(target=lambda: got.extend(source))
        thread.start()
        source.close()
        thread.join(10)
        assert not thread.is_alive() and got == []
    os.close(write)


def test_a_source_that_breaks_off_is_a_frame_of_its_name(place, monkeypatch):
    class Gone(Source):
        name = "camera:0"

        def __iter__(self):
            raise YolactError("camera camera:0 is gone")

    frames = list(ChainSource([Gone(), open_source(["a.png"])]))
    found = [(frame.index, frame.name, frame.source) for frame in frames]
    assert found == [(0, "camera:0", 0), (1, "a.png", 1)]
    with pytest.raises(YolactError, match="is gone"):
        frames[0].read()


def test_an_address_that_cannot_be_opened_gives_no_secret_away(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    frames = list(open_source(["rtsp://user:secret@host/1?token=secret", "a.png"]))
    assert [frame.name for frame in frames] == ["rtsp://host/1", "a.png"]
    with pytest.raises(YolactError, match=r"video .* needs packages"):
        frames[0].read()


@pytest.fixture
def denied(monkeypatch):
    """Make a function of `os` fail for a path, whoever runs the tests."""

    def deny(name, refused):
        refused = Path(refused).absolute()

        def check(function):
            def checked(path=".", *arguments, **options):
                if isinstance(path, str | Path) and Path(path).absolute() == refused:
                    raise PermissionError(13, "Permission denied", str(path))
                return function(path, *arguments, **options)

            return checked

        monkeypatch.setattr(os, name, check(getattr(os, name)))

    return deny


@pytest.mark.parametrize("arguments", [["*/*.png"], ["sub", "t"], ["t", "sub", "t"], ["sub", "**/*.png"]])
def test_a_folder_that_cannot_be_read_is_one_failed_frame(place, denied, arguments):
    Path("t").mkdir()
    Path("t/d.png").write_bytes(Path("a.png").read_bytes())
    denied("scandir", "sub")
    source = open_source(arguments)
    frames = list(source)
    assert not has_video(source) and source.total == len(frames)
    failed = [frame for frame in frames if frame.name == "sub"]
    assert failed and "t/d.png" in [frame.name for frame in frames]
    with pytest.raises(YolactError, match=r"^cannot read folder sub: Permission denied$"):
        failed[0].read()


def test_the_only_folder_cannot_be_read(place, denied):
    denied("scandir", "sub")
    for name in ("sub", "sub/*.png"):
        with pytest.raises(YolactError, match=r"^cannot read folder sub: Permission denied$"):
            open_source([name])


def test_an_image_whose_existence_cannot_be_determined(place, denied):
    denied("stat", "a.png")
    with pytest.raises(YolactError, match=r"^cannot read a\.png: Permission denied$"):
        open_source(["a.png"])
    bad, good = open_source(["a.png", "b.png"])
    assert (bad.name, good.name) == ("a.png", "b.png")
    with pytest.raises(YolactError, match="Permission denied"):
        bad.read()


def test_images_and_videos_of_a_pattern_in_order(place, monkeypatch):
    opened = []

    class Video(Source):
        total = 1

        def __init__(self, path):
            opened.append(str(path))

        def __iter__(self):
            return iter(())

    monkeypatch.setattr("yolact_runtime.sources.open.VideoSource", Video)
    for name in ("aa.mp4", "c.avi", "d.svg", "e.txt"):
        Path(name).write_bytes(b"x")
    source = open_source(["*"])
    assert [type(one).__name__ for one in source.sources] == ["ImageSource", "Video", "ImageSource", "Video"]
    assert opened == ["aa.mp4", "c.avi"] and names(source) == ["a.png", "b.png"]


def test_camera_raw_files_are_no_videos(place):
    Path("a.cr3").write_bytes(b"\0\0\0\x18ftypcrx \0\0\0\1crx isom")
    (frame,) = open_source(["a.cr3"])
    with pytest.raises(YolactError, match=r"image a\.cr3 has a format that is not read; convert it to JPEG"):
        frame.read()


def test_a_video_in_a_list(place):
    Path("a.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    (frame,) = open_source(["-"], io.BytesIO(b"a.mp4\n"))
    with pytest.raises(
        YolactError, match=r"image a\.mp4 is a video by its suffix; a list may name images only"
    ):
        frame.read()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["-", "a.png", "-"], "standard input"),
        ([], "no source is named"),
        (["none.png"], "image none.png does not exist .looked in /"),
        (["none/"], "folder none/ does not exist"),
        (["a.png", "none"], "file or folder none does not exist"),
        (["a.png", "none/*.png"], "pattern none/"),
    ],
)
def test_names_of_nothing(place, names, message):
    with pytest.raises(UsageError, match=message):
        open_source(names)


def test_what_is_done_is_left_out_with_its_index(place):
    source = RemainingSource(open_source(["."]), {"a.png": 1, "gone.png": 1})
    assert [(frame.index, frame.name) for frame in source] == [(1, "b.png")] and source.skipped == 1
    twice = open_source(["-"], io.BytesIO(b"a.png\nb.png\na.png\n"))
    assert [f.index for f in RemainingSource(twice, {"a.png": 1})] == [1, 2]
