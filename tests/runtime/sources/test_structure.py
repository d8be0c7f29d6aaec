"""Where files end: data after the end is ignored, and every file that lacks image data is refused."""

import functools
import io
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_runtime import YolactError
from yolact_runtime.sources.images import read_image, silence_opencv
from yolact_runtime.sources.structure import examine

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def pillow(kind, mode="RGB", **options):
    image = pytest.importorskip("PIL.Image").fromarray(NOISE)
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def frames(kind, mode="RGB", **options):
    image = pytest.importorskip("PIL.Image").fromarray(255 - NOISE)
    more = image.quantize(8) if mode == "P" else image.convert(mode)
    return pillow(kind, mode, save_all=True, append_images=[more], **options)


def with_thumbnail():
    """A JPEG whose EXIF block contains another JPEG, as cameras write it."""
    thumbnail = pillow("jpeg", quality=10)
    data = pillow("jpeg")
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(4) + thumbnail
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + data[2:]


def three_scans():
    """A baseline JPEG with each channel in a scan of its own, assembled from three grey ones."""
    grey = [cv2.imencode(".jpg", NOISE[..., channel])[1].tobytes() for channel in range(3)]
    start = grey[0].index(b"\xff\xc0")
    scan = grey[0].index(b"\xff\xda")
    size = grey[0][start + 5 : start + 9]
    frame = b"\xff\xc0\0\x11\x08" + size + b"\x03" + b"".join(bytes([n, 0x11, 0]) for n in (1, 2, 3))
    tables = grey[0][start + 13 : scan]
    scans = b"".join(
        b"\xff\xda\0\x08\x01" + bytes([n + 1]) + data[scan + 6 : -2] for n, data in enumerate(grey)
    )
    return grey[0][:start] + frame + tables + scans + b"\xff\xd9"


MAKERS = {
    "jpeg": lambda: pillow("jpeg"),
    "jpeg-progressive": lambda: pillow("jpeg", progressive=True),
    "jpeg-restarts": lambda: cv2.imencode(".jpg", NOISE, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes(),
    "jpeg-thumbnail": with_thumbnail,
    "jpeg-scans": three_scans,
    "jpeg-grey": lambda: pillow("jpeg", "L"),
    "png": lambda: pillow("png"),
    "apng": lambda: frames("png"),
    "webp": lambda: pillow("webp"),
    "webp-lossless": lambda: pillow("webp", lossless=True),
    "webp-animated": lambda: frames("webp"),
    "gif": lambda: pillow("gif", "P"),
    "gif-animated": lambda: frames("gif", "P"),
    "tiff": lambda: pillow("tiff"),
    "tiff-lzw": lambda: pillow("tiff", compression="tiff_lzw"),
    "tiff-pages": lambda: frames("tiff"),
    "bmp": lambda: pillow("bmp"),
    "ppm": lambda: pillow("ppm"),
    "pgm": lambda: pillow("ppm", "L"),
    "jp2": lambda: pillow("jpeg2000"),
    "j2k": lambda: pillow("jpeg2000", no_jp2=True),
}


@functools.cache
def whole(name):
    data = MAKERS[name]()
    if name.startswith("gif") and cv2.imdecode(np.frombuffer(data, np.uint8), 1) is None:
        pytest.skip("this OpenCV reads no GIF")
    return data


@pytest.fixture(autouse=True, scope="module")
def quiet():
    silence_opencv()


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "x.bin"

    def read(data):
        path.write_bytes(data)
        return read_image(path)

    return read


@pytest.mark.parametrize("name", MAKERS)
def test_a_proper_prefix_is_refused(read, name):
    """A few pages may be missing after the first one of a TIFF, which is all that is read."""
    data = whole(name)
    picture = read(data)
    assert picture.shape == (24, 32, 3)
    for length in (*range(1, len(data) - 20, len(data) // 60), *range(len(data) - 20, len(data))):
        if name == "tiff-pages" and length > len(whole("tiff")):
            np.testing.assert_array_equal(read(data[:length]), picture)
            continue
        with pytest.raises(YolactError):
            read(data[:length])


# The markers that a search for the end would find, among bytes like those of a video.
TAILS = st.lists(
    st.sampled_from(
        [b"\xff\xda", b"\xff\xd9", b"\xff\xd8", b"IEND", b";", b"\0\0\0\x18ftypmp42", b"\xff\xc4\0"]
    )
    | st.binary(max_size=300)
).map(b"".join)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=30)
@given(tail=TAILS)
def test_data_after_the_end_is_ignored(read, name, tail):
    data = whole(name)
    np.testing.assert_array_equal(read(data + tail), read(data))


def test_a_second_picture_in_a_jpeg_is_no_page(read):
    """Telephones append a gain map; the first picture is the photograph."""
    data = whole("jpeg") + whole("jpeg-grey")
    assert not examine(data).more
    np.testing.assert_array_equal(read(data), read(whole("jpeg")))


def test_a_jpeg_cut_off_in_its_thumbnail_ends_with_an_end_marker(read):
    data = whole("jpeg-thumbnail")
    end = data.index(b"\xff\xd9") + 2
    assert end < len(data) and examine(data[:end]).cut_off


def test_a_jpeg_that_has_its_height_after_the_scan():
    data = whole("jpeg")
    height = data.index(b"\xff\xc0") + 5
    data = data[:height] + b"\0\0" + data[height + 2 : -2] + b"\xff\xdc\0\4\0\x18\xff\xd9"
    assert not examine(data + b"tail").cut_off and examine(data[:-2]).cut_off


def test_a_file_preallocated_and_not_filled_is_cut_off(read):
    for name in ("jpeg", "jpeg-progressive", "png", "gif"):
        data = whole(name)
        with pytest.raises(YolactError, match=r"is cut off|is damaged"):
            read(data[: len(data) // 2] + bytes(len(data)))


@pytest.mark.parametrize("name", MAKERS)
def test_more_pictures(name):
    assert examine(whole(name)).more == (name in ("apng", "webp-animated", "gif-animated", "tiff-pages"))


STARTS = [
    b"",
    b"\xff\xd8",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"RIFFxxxxWEBPVP8X",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
]


@given(st.sampled_from(STARTS), st.binary(max_size=80))
def test_no_content_is_an_exception(start, rest):
    examine(start + rest)


@given(st.sampled_from(list(MAKERS)), st.data())
def test_damage_is_no_exception(name, data):
    content = bytearray(whole(name))
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    examine(bytes(content))
