import io
import logging
import os
import struct

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
    large = np.arange(2 * 65536, dtype=np.uint32).reshape(256, 512).astype(np.uint16)
    read = read_image(save(tmp_path / f"y.{suffix}", large))
    np.testing.assert_array_equal(read[..., 1], np.round(large / 257))


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
    for name, reason in (("folder.jpg", " is a folder, not a file"), ("none.jpg", " does not exist")):
        with pytest.raises(YolactError, match=rf"image .*{name}{reason}"):
            read_image(tmp_path / name)
    locked = save(tmp_path / "locked.png", PICTURE)
    locked.chmod(0)
    if not os.access(locked, os.R_OK):
        with pytest.raises(YolactError, match="Permission denied"):
            read_image(locked)


ALPHA = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))


def tiff(channels, order="<", planes=1, extra=2, big=False, kind=0):
    """An uncompressed TIFF of channels (C, H, W), the last of them of the kind `extra`, or None."""
    count, height, width = channels.shape
    pixels = channels if planes == 2 else np.moveaxis(channels, 0, 2)
    data = pixels.astype(channels.dtype.newbyteorder(order)).tobytes()
    bits = 8 * channels.itemsize
    start, strip = (16, len(data) // count) if big else (8, len(data) // count)
    strips = [start + i * strip for i in range(count)] if planes == 2 else [start]
    tags = {
        254: ("I", [kind]), 256: ("H", [width]), 257: ("H", [height]), 258: ("H", [bits] * count),
        259: ("H", [1]), 262: ("H", [2 if count >= 3 else 1]), 273: ("I", strips), 277: ("H", [count]),
        278: ("H", [height]), 279: ("I", [len(data) // len(strips)] * len(strips)), 284: ("H", [planes]),
    } | ({338: ("H", [extra])} if extra is not None else {})  # fmt: skip
    word, inline = ("Q", 8) if big else ("I", 4)
    place = start + len(data)  # of the values that are not inline
    entries, values = b"", b""
    for tag, (code, numbers) in tags.items():
        content = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(content) > inline:
            content, values = struct.pack(order + word, place + len(values)), values + content
        entries += struct.pack(order + "HH" + word, tag, 3 if code == "H" else 4, len(numbers))
        entries += content.ljust(inline, b"\0")
    directory = struct.pack(order + ("Q" if big else "H"), len(tags)) + entries + bytes(inline)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += (
        struct.pack(order + "HHQ", 8, 0, place + len(values))
        if big
        else struct.pack(order + "I", place + len(values))
    )
    return head + data + values + directory


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("extra", [0, 1, 2], ids=["unspecified", "associated", "unassociated"])
@pytest.mark.parametrize("big", [False, True], ids=["", "bigtiff"])
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_alpha_in_tiff_is_dropped(tmp_path, order, planes, extra, big, grey):
    """The colours are those stored, also where they are said to be multiplied by alpha."""
    colours = [PICTURE[..., 0]] if grey else [PICTURE[..., n] for n in range(3)]
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(np.array([*colours, ALPHA]), order, planes, extra, big))
    np.testing.assert_array_equal(read_image(path), np.dstack((colours * 3)[:3])[..., ::-1])


def test_alpha_in_tiff_of_sixteen_bits(tmp_path):
    channels = np.array([*np.moveaxis(PICTURE, 2, 0), ALPHA]).astype(np.uint16) * 257
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(channels))
    np.testing.assert_array_equal(read_image(path), PICTURE[..., ::-1])
    path.write_bytes(tiff(channels, planes=2))
    with pytest.raises(YolactError, match=r"x\.tif has separate planes of 16 bits, which OpenCV misreads"):
        read_image(path)


def test_planes_that_are_cut_off(tmp_path):
    """OpenCV would return zeros."""
    path = tmp_path / "x.tif"
    data = bytearray(tiff(np.moveaxis(PICTURE, 2, 0), planes=2, extra=None))
    path.write_bytes(data)
    np.testing.assert_array_equal(read_image(path), PICTURE[..., ::-1])
    at = data.index(struct.pack("<HHI", 279, 4, 3)) + 8  # byte counts of the strips
    struct.pack_into("<I", data, struct.unpack_from("<I", data, at)[0] + 8, 1 << 20)
    path.write_bytes(data)
    with pytest.raises(YolactError, match="is cut off"):
        read_image(path)


def test_the_thumbnail_of_a_camera_raw_file_is_not_the_picture(tmp_path):
    path = tmp_path / "x.dng"
    path.write_bytes(tiff(np.moveaxis(PICTURE, 2, 0), extra=None, kind=1))
    with pytest.raises(YolactError, match="begins with a thumbnail, as camera raw files do"):
        read_image(path)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", {"transparency": (10, 200, 30)}),
        ("png", {"mode": "P", "transparency": 0}),
        ("png", {"mode": "P", "transparency": b"\0\x80"}),
        ("gif", {"mode": "P", "transparency": 0}),
        ("gif", {"mode": "P", "transparency": 1}),
        ("webp", {"mode": "RGBA", "lossless": True, "exact": True}),
        ("avif", {"mode": "RGBA", "quality": 100, "subsampling": "4:4:4"}),
        ("jp2", {"mode": "RGBA"}),
    ],
)
def test_transparency_is_dropped(tmp_path, suffix, options):
    pillow = pytest.importorskip("PIL.Image")
    image = pillow.fromarray(PICTURE)
    mode = options.pop("mode", "RGB")
    if suffix == "avif":
        pytest.importorskip("PIL._avif")
    if mode == "P":
        image = image.quantize(8)
    if mode == "RGBA":
        image.putalpha(pillow.fromarray(ALPHA))
    expected = np.asarray(image.convert("RGB")).astype(int)[..., ::-1]
    path = save(tmp_path / f"x.{suffix}", image, **options)
    if suffix == "gif" and cv2.imread(str(path)) is None:
        pytest.skip("this OpenCV reads no GIF")
    assert np.abs(read_image(path) - expected).max() <= (4 if suffix == "avif" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["webp", "png", "tiff"])
def test_orientation_in_every_format(tmp_path, suffix, orientation):
    pillow = pytest.importorskip("PIL.Image")
    operations = pytest.importorskip("PIL.ImageOps")
    exif = pillow.Exif()
    exif[0x112] = orientation
    path = save(
        tmp_path / f"x.{suffix}", PICTURE, exif=exif, **({"lossless": True} if suffix == "webp" else {})
    )
    shown = pillow.fromarray(PICTURE)
    shown.getexif()[0x112] = orientation
    np.testing.assert_array_equal(read_image(path), np.asarray(operations.exif_transpose(shown))[..., ::-1])


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_of_several_pictures_the_first_is_read_with_one_warning(tmp_path, suffix, caplog):
    pillow = pytest.importorskip("PIL.Image")
    first, second = (pillow.fromarray(image).quantize(8) for image in (PICTURE, 255 - PICTURE))
    if suffix != "gif":
        first, second = first.convert("RGB"), second.convert("RGB")
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"x.{suffix}", first, save_all=True, append_images=[second], **options)
    if suffix == "gif" and cv2.imread(str(path)) is None:
        pytest.skip("this OpenCV reads no GIF")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            np.testing.assert_array_equal(read_image(path), np.asarray(first.convert("RGB"))[..., ::-1])
    assert caplog.messages == [f"image {path} is animated or has several pictures; only the first is read"]


def test_an_opencv_that_reads_no_gif_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "x.gif", PICTURE)
    monkeypatch.setattr("cv2.imdecode", lambda *_: None)
    with pytest.raises(
        YolactError, match=rf"is a GIF, which OpenCV {cv2.__version__} does not read; run: pip"
    ):
        read_image(path)


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 300 + ".png", "x/" * 3000 + "a.png"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(YolactError, match="cannot read image"):
        read_image(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    for path, kind in ((tmp_path / "x.png", "pipe"), ("/dev/zero", "device")):
        with pytest.raises(YolactError, match=f"is a {kind}, not a file"):
            read_image(path)


def test_the_error_for_float_images_says_what_to_do(tmp_path):
    path = tmp_path / "x.tiff"
    path.write_bytes(cv2.imencode(".tiff", np.ones((5, 5, 3), np.float32))[1].tobytes())
    with pytest.raises(YolactError, match="float32 values; convert it"):
        read_image(path)
