"""Sizes from headers, compared with Pillow's and with the decoded image."""

import io
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact_runtime.sources.headers import image_size, read_header


def encoded(kind, width, height, **options):
    pillow = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    pillow.new(options.pop("mode", "RGB"), (width, height)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("png", {}),
        ("jpeg", {}),
        ("jpeg", {"progressive": True}),
        ("jpeg", {"exif": b"Exif\0\0" + bytes(3000), "comment": b"\xff\xc0 no frame"}),
        ("webp", {}),
        ("webp", {"lossless": True}),
        ("webp", {"mode": "RGBA", "exif": b"Exif\0\0"}),
        ("tiff", {}),
        ("bmp", {}),
        ("gif", {"mode": "P"}),
        ("ppm", {}),
        ("ppm", {"mode": "L"}),
        ("jpeg2000", {}),
        ("jpeg2000", {"no_jp2": True}),
        ("tiff", {"big_tiff": True}),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (300, 7), (17, 600)])
def test_every_format(kind, options, size):
    data = encoded(kind, *size, **options)
    assert image_size(data) == size
    image = cv2.imdecode(np.frombuffer(data, np.uint8), 1)
    # OpenCV reads GIF from 4.12 on.
    assert (image is None and kind == "gif") or image.shape[1::-1] == size


@pytest.mark.parametrize("suffix", ["png", "tiff", "jp2", "pgm", "ppm", "bmp", "jpg", "webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_type_of_the_values(suffix, dtype):
    image = np.full((90, 80) if suffix == "pgm" else (90, 80, 3), np.iinfo(dtype).max, dtype)
    if dtype == np.uint16 and suffix in ("bmp", "jpg", "webp"):
        pytest.skip("the format has 8 bits")
    data = cv2.imencode(f".{suffix}", image)[1].tobytes()
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH)
    header = read_header(data)
    assert header.values == decoded.dtype == image.dtype
    assert header[:2] == (80, 90)


def test_big_endian_and_comments():
    image = np.zeros((5, 9), np.uint8)
    tiff = b"MM\0*\0\0\0\x08\0\x02" + b"".join(
        tag.to_bytes(2, "big") + b"\0\4\0\0\0\1" + n.to_bytes(4, "big") for tag, n in ((256, 9), (257, 5))
    )
    assert image_size(tiff) == (9, 5)
    assert read_header(b"P4 9 512\n").values == "uint8"
    assert image_size(b"P5 # a comment\n#another\n9 5\n255\n" + image.tobytes()) == (9, 5)
    assert image_size(b"BM" + bytes(16) + (9).to_bytes(4, "little") + b"\xfb\xff\xff\xff") == (9, 5)


@pytest.mark.parametrize(("width", "height"), [(9, 5), (1, 40_000)])
def test_bmp_with_the_header_of_os2(width, height):
    row = (width * 3 + 3) // 4 * 4
    data = b"BM" + struct.pack("<IHHIIHHHH", 26, 0, 0, 26, 12, width, height, 1, 24) + bytes(row * height)
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == (height, width, 3)
    assert image_size(data) == (width, height)


def test_bytes_between_the_segments_of_a_jpeg_do_not_hide_its_size():
    data = encoded("jpeg", 300, 200)
    end = data.index(b"\xff\xdb")
    data = data[:end] + b"\0\0\1" + data[end:]
    assert image_size(data) == (300, 200) == cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape[1::-1]


STARTS = [
    b"",
    b"\xff\xd8",
    b"\xff\x4f\xff\x51",
    b"MM\0+",
    b"\x89PNG\r\n\x1a\n",
    b"II*\0",
    b"GIF89a",
    b"RIFF1234WEBPVP8X",
    b"P6 ",
]


@given(st.sampled_from(STARTS), st.binary(max_size=60))
def test_no_content_breaks_it(start, rest):
    header = read_header(start + rest)
    assert header is None or min(header.width, header.height) > 0


@given(st.integers(0, 200))
def test_a_header_that_is_cut_off(length):
    data = encoded("jpeg", 30, 20)
    assert image_size(data[:length]) in (None, (30, 20))
