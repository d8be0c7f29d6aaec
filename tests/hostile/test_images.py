"""Damaged and hostile images: each is reported in one line and skipped, and the run continues."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import cli
from yolact_runtime.sources.images import ImageSource


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in with an engine, two good images; a bad one sorts between them."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    Path("photos").mkdir()
    for name in ("a.png", "z.png"):
        assert cv2.imwrite(f"photos/{name}", np.full((20, 30, 3), 255, np.uint8))
    return tmp_path


def infer(*arguments):
    return cli.main(["--engine", "m.onnx", "--threads", "1", "--no-overlay", *map(str, arguments)])


def photo(seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (90, 80, 3), np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def png(width, height):
    """A grey one-bit PNG of zeros, which compresses a thousandfold."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def is_reported_and_skipped(capsys, message, arguments=("photos",)):
    assert infer(*arguments) == 1
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1 and message in errors[0] and errors[0].endswith("; skipped"), errors
    assert printed.out.startswith("2 images, 4 detections, 1 failure")
    images = json.loads(Path("results/images.json").read_text())["images"]
    assert [Path(image["file_name"]).name for image in images] == ["a.png", "z.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corrupt.jpg", b"\xff\xd8" + bytes(500) + b"\xff\xd9", "is damaged or not an image"),
        ("truncated.jpg", photo()[:2000], "is cut off; copy it again"),
        ("empty.jpg", b"", "is empty (0 bytes)"),
        ("text.jpg", b"this is no picture\n" * 9, "is damaged or not an image"),
        (
            "bomb.png",
            png(20_000, 20_000),
            "says that it is 20000 x 20000 pixels, more than the 250,000,000 allowed",
        ),
        # 35 bytes that decode into 790 MB; a reader of signed sides sees a width of -32768.
        (
            "bomb.gif",
            struct.pack("<6sHHBBB6s", b"GIF89a", 32_768, 8_000, 0x80, 0, 0, b"\0\0\0\xff\xff\xff")
            + struct.pack("<cHHHHB6s", b",", 0, 0, 1, 1, 0, b"\x02\x02\x44\x01\x00;"),
            "says that it is 32768 x 8000 pixels, more than the 250,000,000 allowed",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_content(place, capsys, name, content, message):
    Path("photos", name).write_bytes(content)
    is_reported_and_skipped(capsys, f"image photos/{name} {message}")


def test_the_limit_on_pixels_can_be_moved(place, capsys, monkeypatch):
    Path("photos/large.png").write_bytes(png(100, 100))
    monkeypatch.setenv("YOLACT_MAX_PIXELS", "9999")
    is_reported_and_skipped(capsys, "more than the 9,999 allowed (YOLACT_MAX_PIXELS sets another limit)")
    monkeypatch.setenv("YOLACT_MAX_PIXELS", "10000")
    assert infer("photos") == 0
    monkeypatch.setenv("YOLACT_MAX_PIXELS", "many")
    assert infer("photos") == 2
    assert "YOLACT_MAX_PIXELS is 'many'" in capsys.readouterr().err


def test_the_limit_is_one_of_memory(place, capsys, monkeypatch):
    """16 bits take twice the memory: 12 bytes for a pixel, where 8 are allowed."""
    monkeypatch.setenv("YOLACT_MAX_PIXELS", "500000")
    assert cv2.imwrite("photos/deep.png", np.zeros((600, 600, 3), np.uint16))
    is_reported_and_skipped(
        capsys,
        "600 x 600 pixels of a kind that takes 4.3 MB while it is decoded, more than the 4.0 MB allowed",
    )
    assert cv2.imwrite("photos/deep.png", np.zeros((600, 600, 3), np.uint8))
    assert infer("photos") == 0


def test_a_bomb_takes_no_memory(tmp_path):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(20_000, 20_000))
    assert bomb.stat().st_size < 100_000
    script = """if True:
        import resource, sys
        from yolact_runtime.sources.images import read_image
        from yolact_runtime import YolactError
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read_image(sys.argv[1])
        except YolactError:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    grown = subprocess.run([sys.executable, "-c", script, bomb], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 50_000  # KiB; decoded it is 1,200,000


def test_a_folder_named_like_an_image(place, capsys):
    Path("photos/folder.jpg").mkdir()
    assert infer("photos") == 0  # subfolders are not searched
    assert infer("photos/folder.jpg") == 2
    assert "folder photos/folder.jpg holds no image" in capsys.readouterr().err
    Path("list").write_text("photos/a.png\nphotos/folder.jpg\nphotos/z.png\n")
    listed(capsys, "image photos/folder.jpg is a folder, not a file")


def listed(capsys, message):
    """The list through the standard input of a process of its own."""
    command = [
        sys.executable,
        "-m",
        "yolact_runtime.cli",
        "--engine",
        "m.onnx",
        "--quiet",
        "--no-overlay",
        "-",
    ]
    with Path("list").open("rb") as stream:
        done = subprocess.run(command, stdin=stream, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout.startswith("2 images, 4 detections, 1 failure")
    assert done.stderr == f"ERROR: {message}; skipped\n"


def test_a_list_with_missing_files_and_blank_lines(place, capsys):
    Path("list").write_text("\nphotos/a.png\n\n   \nnone.png\nphotos/z.png\n\n")
    listed(capsys, "image none.png does not exist")


def test_a_file_that_vanishes_after_the_listing(place, capsys, monkeypatch):
    Path("photos/gone.png").write_bytes(Path("photos/a.png").read_bytes())
    iterate = ImageSource.__iter__

    def vanish(source):
        Path("photos/gone.png").unlink()
        return iterate(source)

    monkeypatch.setattr(ImageSource, "__iter__", vanish)
    is_reported_and_skipped(capsys, "image photos/gone.png does not exist")


def test_a_file_that_may_not_be_read(place, capsys, monkeypatch):
    locked = Path("photos/locked.png")
    locked.write_bytes(Path("photos/a.png").read_bytes())
    locked.chmod(0)
    if os.access(locked, os.R_OK):  # by root
        opened = os.open

        def refuse(path, *arguments, **named):
            if str(path).endswith("locked.png"):
                raise PermissionError(13, "Permission denied")
            return opened(path, *arguments, **named)

        monkeypatch.setattr(os, "open", refuse)
    is_reported_and_skipped(capsys, "cannot read image photos/locked.png: Permission denied")


def test_links_that_lead_in_a_circle(place, capsys):
    Path("photos/loop.jpg").symlink_to("loop.jpg")
    is_reported_and_skipped(capsys, "cannot read image photos/loop.jpg: Too many levels of symbolic links")
    assert infer("photos/loop.jpg") == 2
    assert "image photos/loop.jpg is a broken symbolic link" in capsys.readouterr().err


def test_a_folder_that_may_not_be_read(place, capsys, monkeypatch):
    Path("photos/locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    is_reported_and_skipped(
        capsys, "cannot read folder photos/locked: Permission denied", ["photos/**/*.png"]
    )
    is_reported_and_skipped(capsys, "folder photos/locked: Permission denied", ["photos/locked", "photos"])
    assert infer("photos/locked") == 1
    assert capsys.readouterr().err == "ERROR: cannot read folder photos/locked: Permission denied\n"


def test_an_image_that_may_not_be_looked_at(place, capsys, monkeypatch):
    """Its folder may be listed, but not searched."""
    stat = os.stat

    def refuse(path, *arguments, **options):
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    is_reported_and_skipped(capsys, "cannot read locked/a.png: Permission denied", ["locked/a.png", "photos"])
    for option in (["locked/a.png"], ["--image", "locked/a.png:b.png"], ["x" * 300], ["--image", "x" * 300]):
        assert infer(*option) == 1
        assert capsys.readouterr().err.startswith(f"ERROR: cannot read {option[-1].partition(':')[0]}: ")


def test_names_in_a_list_that_no_file_can_have(place, capsys):
    Path("list").write_bytes(b"photos/a.png\n" + b"x" * 300 + b".png\nphotos/z.png\n")
    listed(capsys, f"cannot read image {'x' * 300}.png: File name too long")
    Path("list").write_bytes(b"photos/a.png\nno\0name.png\nphotos/z.png\n")
    error = "the path that begins with no contains a zero byte; add --null to read such lists"
    listed(capsys, error)


def test_a_list_with_a_line_of_many_megabytes(place, capsys):
    Path("list").write_bytes(b"photos/a.png\n" + b"x" * 50_000_000 + b"\n\nphotos/z.png\n")
    listed(capsys, f"the path that begins with {'x' * 100} is longer than any file's")


def test_a_pipe_in_a_list(place, capsys):
    os.mkfifo("photos/pipe.png")
    Path("list").write_text("photos/a.png\nphotos/pipe.png\nphotos/z.png\n")
    listed(capsys, "image photos/pipe.png is a pipe, not a file")
    assert infer("photos") == 0


@pytest.mark.parametrize("links", [1, 2, 3])
def test_folders_that_lead_up(place, capsys, links):
    for number in range(links):
        Path(f"photos/up{number}").symlink_to("..")
    assert infer("photos/**/*.png") == 0
    assert capsys.readouterr().out.startswith("2 images")


def test_a_photo_with_a_video_after_its_end(place, capsys):
    video = b"\0\0\0\x18ftypmp42" + np.random.default_rng(4).bytes(9000) + b"\xff\xda" + bytes(99)
    Path("photos/b.jpg").write_bytes(photo() + video)
    assert infer("photos") == 0
    assert capsys.readouterr().out.startswith("3 images")


def test_folders_that_lead_in_a_circle(place, capsys):
    Path("photos/again").symlink_to(".")
    assert infer("photos/**/*.png") == 0
    assert capsys.readouterr().out.startswith("2 images")
