from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from yolact.data.layout import image_path
from yolact.data.reader.findings import Findings
from yolact.data.reader.image_files import (
    ImageFolder,
    check_sizes,
    exif_orientation,
    find_images,
    header_size,
)
from yolact_runtime.errors import YolactError
from yolact_runtime.sources.images import read_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    names = [
        "a b.jpg",
        "000000000042.jpg",
        "sub/c.JPG",
        unicodedata.normalize("NFC", "é.png"),
        "D.jpg",
        "d.JPG",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a b.jpg", "a b.jpg"),
        ("a%20b.jpg", "a b.jpg"),
        ("A B.JPG", "a b.jpg"),
        ("train\\a%20b.jpg", "a b.jpg"),
        ("sub\\c.JPG", "sub/c.JPG"),
        ("sub/c.jpg", "sub/c.JPG"),
        ("./sub/c.jpg", "sub/c.JPG"),
        (unicodedata.normalize("NFD", "é.png"), unicodedata.normalize("NFC", "é.png")),
        ("val2014/COCO_val2014_000000000042.jpg", "000000000042.jpg"),
        ("D.jpg", "D.jpg"),
        ("d.JPG", "d.JPG"),
        # Either of two files.
        ("d.jpg", None),
        ("gone/e.jpg", None),
        ("bad\0name.jpg", None),
        ("", None),
    ],
)
def test_an_image_is_found_by_any_spelling_that_means_one_file(
    folder: Path, name: str, found: str | None
) -> None:
    path = ImageFolder(folder).find(name)
    if found is None:
        assert not (path.name and "\0" not in name and path.is_file())
    else:
        assert path.resolve() == (folder / found).resolve()
        assert path.is_file()


def test_two_spellings_of_one_file_are_an_error_and_one_name_twice_is_not(folder: Path) -> None:
    def errors(*names: str) -> int:
        findings = Findings()
        images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        find_images(images, folder, findings)
        return findings.count("error")

    assert errors("a b.jpg", "a%20b.jpg") == 1
    assert errors("x/a b.jpg", "y/a b.jpg", "sub/c.JPG") == 1
    assert errors("a b.jpg", "a b.jpg", "D.jpg", "d.JPG") == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_the_size_in_the_header_is_that_of_the_decoded_image(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    """Where they differ, because the decoder ignores EXIF in a format, the image is decoded anyway."""
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, exif=exif)
    real = read_image(path).shape[:2]
    assert header_size(path) in ((20, 30), (30, 20))
    images = [{"id": 1, "file_name": path.name, "height": real[0], "width": real[1]}]
    findings = Findings()
    check_sizes(images, {1: path}, findings)
    assert findings.count("error") == 0
    if suffix == ".jpg":
        assert header_size(path) == real
        images[0] |= {"height": real[1], "width": real[0]}
        check_sizes(images, {1: path}, findings)
        assert findings.count("error") == 1


def test_many_images_are_sampled(tmp_path: Path) -> None:
    paths = {}
    for number in range(30):
        paths[number] = tmp_path / f"{number}.png"
        cv2.imwrite(str(paths[number]), np.zeros((9, 8, 3), np.uint8))
    images = [{"id": n, "file_name": path.name, "height": 8, "width": 8} for n, path in paths.items()]
    findings = Findings()
    check_sizes(images, paths, findings, sample=10)
    assert findings.count("error") == 10


def test_pipes_and_devices_are_not_opened_for_their_headers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png", "a" * 300, "bad\0name.png"):
        assert header_size(tmp_path / name) is None
        assert exif_orientation(tmp_path / name) == 1


def test_long_names_and_unreadable_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x" * 300 + ".jpg", "x/" * 2000 + "a.jpg"):
        assert ImageFolder(folder).find(name) == folder / name
    assert image_path(folder, "x" * 300) == folder / ("x" * 300)

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(YolactError, match=r"cannot read folder .*: Permission denied"):
        ImageFolder(folder).find("a.jpg")
