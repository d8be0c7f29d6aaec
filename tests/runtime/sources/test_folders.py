"""Folders and patterns: what they name, skip and report, against Python's own glob."""

import glob
import os
import threading
from pathlib import Path

import pytest

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.sources.folders import match, scan
from yolact_runtime.sources.images import list_images


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with files and folders in it."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "a.png", "b.JPG", "c[1].png", ".hidden.png", "._a.png", "notes.txt",
        "sub/a.png", "sub/deep/a.png", "sub/deep/er/b.png", ".git/a.png", "other/x.png",
    ):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")
    return tmp_path


@pytest.fixture
def unreadable(monkeypatch):
    """A set of folders that may not be read, whoever runs the tests."""
    names = set()
    real = os.scandir

    def scandir(path):
        if Path(path).resolve() in {Path(name).resolve() for name in names}:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    return names


PATTERNS = [
    "*", "*.png", "*.PNG", "?.png", "[ab].*", "c[[]1].png", ".*", ".*.png", "sub/*", "sub/*/a.png", "*/*.png",
    "*/a.png", "**", "**/*.png", "**/a.png", "sub/**/*", "sub/**/er/*", "**/deep/**/*.png", "**/.git/*",
    "**/**/*.png", "./*.png", "sub/../*.png", "sub//*.png", "none/*.png", "a.png/*", "*/none/*", "**/",
    "sub/*/", "*.tif",
]  # fmt: skip


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_those_of_glob(place, pattern, absolute):
    pattern = f"{place}/{pattern}" if absolute else pattern
    expected = [name for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]  # noqa: PTH207
    expected = {os.path.normpath(name) for name in expected if not Path(name).name.startswith("._")}
    found = match(pattern)
    assert found == sorted(found) and {os.path.normpath(name) for name in found} == expected


def within(seconds, function, *arguments):
    """The result of a call that must not go on for ever."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments)), daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, f"still searching after {seconds} s"
    return results[0]


def test_links_that_lead_back_end(place):
    for name in ("up", "up2", "sub/up", "sub/deep/up", "here"):
        Path(name).symlink_to("." if name == "here" else "..")
    names = ["a.png", "c[1].png", "other/x.png", "sub/a.png", "sub/deep/a.png", "sub/deep/er/b.png"]
    assert within(20, match, "**/*.png") == names
    assert within(20, match, f"{place}/**/*.png") == [f"{place}/{name}" for name in names]
    # One level at a time, as the pattern says.
    assert match("sub/up/*.png") == ["sub/up/a.png", "sub/up/c[1].png"]


def test_a_link_to_a_folder_is_followed_once(place, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "inner").mkdir()
    (elsewhere / "inner/far.png").write_bytes(b"x")
    (elsewhere / "inner/back").symlink_to("..")
    for name in ("link", "sub/link"):
        Path(name).symlink_to(elsewhere)
    found = match("**/far.png")
    assert len(found) == 1 and found[0] in ("link/inner/far.png", "sub/link/inner/far.png")
    # A folder inside the search keeps its own name.
    Path("0").symlink_to("sub")
    assert match("**/deep/a.png") == ["sub/deep/a.png"]


def test_one_folder_that_cannot_be_read_is_reported_and_the_others_searched(place, unreadable):
    unreadable.add("sub/deep")
    errors = []
    names = match("**/*.png", lambda folder, error: errors.append((folder, str(error))))
    assert names == ["a.png", "c[1].png", "other/x.png", "sub/a.png"]
    assert errors == [("sub/deep", "cannot read folder sub/deep: Permission denied")]
    with pytest.raises(YolactError, match=r"^cannot read folder sub/deep: Permission denied$"):
        list_images(["**/*.png"])
    unreadable.add(".")
    for source in (".", "*.png", place):
        with pytest.raises(YolactError, match=r"^cannot read folder .*: Permission denied$"):
            list_images([source])


def test_a_folder_that_vanishes(place):
    with pytest.raises(YolactError, match="cannot read folder gone: No such file or directory"):
        scan("gone")


def test_names_are_those_of_the_folder(place):
    assert scan(".") == [".hidden.png", "a.png", "b.JPG", "c[1].png", "notes.txt"]
    assert scan("./sub/") == ["sub/a.png"] and scan("other/../sub") == ["other/../sub/a.png"]


@pytest.mark.parametrize("source", ["photos", "photos/*"])
def test_what_is_skipped_is_counted_in_one_line(place, source, caplog):
    for name in [*(f"{n}.CR2" for n in range(10)), "a.jpg", "b.mp4", "c.Mp4", "d.svg", "e.txt", "f"]:
        Path("photos").mkdir(exist_ok=True)
        Path("photos", name).write_bytes(b"x")
    assert list_images([source]) == [Path("photos/a.jpg")]
    (line,) = caplog.messages
    assert line.startswith(f"{source}: 13 files skipped: 10 .cr2, 2 .mp4, 1 .svg; videos in folders are read")
    Path("photos/a.jpg").unlink()
    with pytest.raises(UsageError, match=r"no image; 13 files skipped: 10 \.cr2, 2 \.mp4, 1 \.svg;"):
        list_images([source])


def test_suffixes_that_opencv_reads(place):
    names = ["a.jfif", "b.jpe", "c.jp2", "d.pgm", "e.PPM", "f.dib", "g.pbm", "h.apng"]
    for name in names:
        Path("other", name).write_bytes(b"x")
    assert [path.name for path in list_images(["other"])] == [*names, "x.png"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("photos/", "folder photos/ does not exist"),
        ("photos", "file or folder photos does not exist"),
        ("photos/a.jpg", "image photos/a.jpg does not exist"),
        ("a.png/b.png", "image a.png/b.png does not exist"),
        ("a.png/", "folder a.png/ does not exist"),
    ],
)
def test_what_does_not_exist_is_named_with_where_it_was_looked_for(place, source, message):
    with pytest.raises(UsageError) as raised:
        list_images([source])
    assert str(raised.value) == f"{message} (looked in {place})"
    with pytest.raises(UsageError) as raised:
        list_images([f"{place}/{source}"])
    assert str(raised.value).endswith(f"/{source} does not exist")


def test_a_name_that_is_too_long(place):
    with pytest.raises(YolactError, match=r"^cannot read x+\.png: File name too long$"):
        list_images(["x" * 300 + ".png"])
    with pytest.raises(UsageError, match="matches no image"):
        list_images(["y" * 300 + "*.png"])
