import io
import os

import cv2
import numpy as np
import pytest

from yolact_runtime import YolactError
from yolact_runtime.errors import UsageError
from yolact_runtime.sources.images import list_images, read_image, silence_opencv

PICTURE = np.zeros((40, 60, 3), np.uint8)  # RGB
PICTURE[:20, :30] = (10, 200, 30)
PICTURE[20:, 30:] = (250, 0, 120)


@pytest.fixture(autouse=True, scope="module")
def quiet():
    silence_opencv()


def save(path, image, **options):
    pillow = pytest.importorskip("PIL.Image")
    (image if hasattr(image, "save") else pillow.fromarray(image)).save(path, **options)
    return path


def test_files_folders_and_patterns(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "._a.png", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.jpg").mkdir()
    names = [path.name for path in list_images([tmp_path])]
    assert names == ["a.png", "b.JPG"]
    assert [p.name for p in list_images([f"{tmp_path}/**/*.*"])] == ["a.png", "b.JPG", "c.webp"]
    # Each once, in the given order; a named file may have any suffix.
    given = [tmp_path / "notes.txt", tmp_path / "b.JPG", tmp_path]
    assert [p.name for p in list_images(given)] == ["notes.txt", "b.JPG", "a.png"]


@pytest.mark.parametrize("source", ["none.jpg", "*.gif", "empty"])
def test_sources_without_images_are_named(tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as raised:
        list_images([tmp_path / source])
    assert str(tmp_path / source) in str(raised.value)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_colour(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    read = read_image(save(tmp_path / f"x.{suffix}", PICTURE, **options))
    np.testing.assert_array_equal(read, PICTURE[..., ::-1])


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_orientation(tmp_path, orientation, turns):
    pillow = pytest.importorskip("PIL.Image")
    exif = pillow.Exif()
    exif[0x112] = orientation
    read = read_image(save(tmp_path / "x.jpg", PICTURE, exif=exif, quality=95, subsampling=0))
    np.testing.assert_allclose(read.astype(int), np.rot90(PICTURE[..., ::-1], turns), atol=30)
    assert np.abs(read.astype(int) - np.rot90(PICTURE[..., ::-1], turns)).mean() < 2


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_other_kinds_of_pixels(tmp_path, mode):
    pillow = pytest.importorskip("PIL.Image")
    image = pillow.fromarray(PICTURE).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(100)
    options = {"quality": 95, "subsampling": 0} if mode == "CMYK" else {}
    read = read_image(save(tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"), image, **options))
    opaque = image.convert("L" if mode == "LA" else image.mode).convert("RGB")
    assert read.shape == (40, 60, 3) and read.dtype == np.uint8
    expected = np.asarray(opaque)[..., ::-1].astype(int)
    assert np.abs(read - expected).mean() < (2 if mode == "CMYK" else 0.01)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 30000, 65407, 65535]], np.uint16)
    read = read_image(save(tmp_path / f"x.{suffix}", values))
    assert read[0, :, 0].tolist() == np.round(values[0] / 257).astype(int).tolist()
    assert (read[..., 0] == read[..., 2]).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_damaged_files(tmp_path, suffix):
    image = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
    buffer = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(image).save(buffer, "jpeg" if suffix == "jpg" else suffix)
    data = buffer.getvalue()
    path = tmp_path / f"x.{suffix}"
    for part in (b"", data[:2], data[: len(data) // 2], data[:-20], b"<html>not found</html>"):
        path.write_bytes(part)
        with pytest.raises(YolactError, match=rf"x\.{suffix}") as raised:
            read_image(path)
        assert "\n" not in str(raised.value)


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    for name in ("folder.jpg", "none.jpg"):
        with pytest.raises(YolactError, match=rf"cannot read image .*{name}"):
            read_image(tmp_path / name)
    locked = save(tmp_path / "locked.png", PICTURE)
    locked.chmod(0)
    if not os.access(locked, os.R_OK):
        with pytest.raises(YolactError, match="Permission denied"):
            read_image(locked)


def test_the_error_for_float_images_says_what_to_do(tmp_path):
    path = tmp_path / "x.tiff"
    path.write_bytes(cv2.imencode(".tiff", np.ones((5, 5, 3), np.float32))[1].tobytes())
    with pytest.raises(YolactError, match="float32 values; convert it"):
        read_image(path)
