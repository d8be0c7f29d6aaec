"""Images that take much memory or time to decode are refused by their headers."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolact_runtime import YolactError
from yolact_runtime.sources.headers import read_header
from yolact_runtime.sources.images import read_image, silence_opencv
from yolact_runtime.sources.structure import examine

SIDES = 1600, 1200
PICTURE = np.full((*SIDES[::-1], 3), (30, 90, 200), np.uint8)
KINDS = [
    ("jpeg", "RGB", {}), ("jpeg", "RGB", {"progressive": True, "subsampling": 0}),
    ("jpeg", "CMYK", {"progressive": True}), ("png", "RGB", {}), ("png", "P", {}), ("bmp", "RGB", {}),
    ("gif", "P", {}), ("ppm", "RGB", {}), ("webp", "RGBA", {}), ("webp", "RGB", {"lossless": True}),
    ("tiff", "RGB", {"compression": "tiff_deflate", "tiffinfo": {278: SIDES[1]}}), ("tiff", "CMYK", {}),
    ("jpeg2000", "RGB", {}), ("jpeg2000", "RGBA", {"codeblock_size": (4, 4)}),
    ("jpeg2000", "L", {"tile_size": (16, 16)}), ("avif", "RGB", {}),
    *((suffix, "uint16", {}) for suffix in ("png", "tiff", "jp2", "ppm")),
    *((suffix, "uint8", {}) for suffix in ("pam", "ras")),
]  # fmt: skip
# Prints by how many bytes each file named exceeds the memory that the error for it names.
MEASURE = """if True:
    import json, os, re, sys
    from yolact_runtime.errors import YolactError
    from yolact_runtime.sources.images import read_image, silence_opencv

    silence_opencv()
    status = lambda key: int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    over = {}
    for path in [sys.argv[1], *sys.argv[1:]]:  # the first one loads libraries
        os.environ["YOLACT_MAX_PIXELS"] = "1920000"
        said = 8 * 1920000
        while True:
            open("/proc/self/clear_refs", "w").write("5")
            before = status("VmRSS")
            try:
                read_image(path)
            except YolactError as error:
                said = float(re.search(r"takes ([\\d,.]+) MB", str(error))[1].replace(",", "")) * 1e6
                os.environ["YOLACT_MAX_PIXELS"] = "100000000"
                continue
            over[path] = status("VmHWM") - before - said
            break
    print(json.dumps(over))
"""


@pytest.fixture(autouse=True, scope="module")
def quiet():
    silence_opencv()


def saved(kind, mode, options):
    if mode.startswith("uint"):
        return cv2.imencode(f".{kind}", PICTURE.astype(mode))[1].tobytes()
    image = pytest.importorskip("PIL.Image").fromarray(PICTURE).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_decoding_takes_no_more_memory_than_is_said(tmp_path):
    """In every kind; what the limit allows is all that is taken where nothing is said."""
    paths = []
    for number, kind in enumerate(KINDS):
        paths.append(str(tmp_path / f"{number}.{kind[0]}"))
        Path(paths[-1]).write_bytes(saved(*kind))
    command = [sys.executable, "-c", MEASURE, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    over = {Path(path).name: excess for path, excess in json.loads(done.stdout).items()}
    assert len(over) == len(KINDS) and max(over.values()) < 4e6, over


def test_a_plain_photo_of_all_pixels_allowed_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLACT_MAX_PIXELS", str(SIDES[0] * SIDES[1]))
    for kind in (("jpeg", "RGB", {}), ("jpeg", "RGB", {"progressive": True}), ("png", "RGB", {})):
        (tmp_path / "x").write_bytes(saved(*kind))
        assert read_image(tmp_path / "x").shape == PICTURE.shape


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*sizes):
    heads = b"".join(chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)) for size in sizes)
    rows = chunk(b"IDAT", zlib.compress(bytes(4)))
    return b"\x89PNG\r\n\x1a\n" + heads + rows + chunk(b"IEND", b"")


def tiff(tags, data=b"\0"):
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + fields + bytes(4)


def scans(count):
    """A progressive JPEG whose last scan is repeated."""
    data = saved("jpeg", "RGB", {"progressive": True})
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


HUGE_TILES = [(322, 60_000), (323, 60_000)]
GREY = [(258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (279, 1)]
DAMAGED = "is damaged"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("two headers", lambda: png((1, 1), (60_000, 60_000)), DAMAGED),
        ("a comment that ends early", lambda: b"P5 #\r60000 60000 255\n1 1 255\n\0", "60000 x 60000 pixels"),
        ("a raw VP8 picture", lambda: saved("webp", "RGB", {})[20:], DAMAGED),
        ("two widths", lambda: tiff([(256, 60_000), (256, 1), (257, 60_000), *GREY]), "60000 x 60000"),
        ("tiles", lambda: tiff([(256, 1), (257, 1), *GREY, *HUGE_TILES]), "takes 18,000.0 MB"),
        ("strips", lambda: tiff([(256, 1), (257, 900_000), *GREY, (278, 1)]), "has more than 500,000 strips"),
        ("scans", lambda: scans(1000), "scans, too many for its size"),
        (
            "a picture outside of its screen",
            lambda: struct.pack("<6sHHBBBc4HB", b"GIF89a", 1, 1, 0, 0, 0, b",", 0, 0, 9, 9, 0),
            "its first picture lies outside",
        ),
        (
            "another codestream first",
            lambda: saved("jpeg2000", "RGB", {}).replace(
                b"jp2c", b"uuid" + b"\xff\x4f\xff\x51" + bytes(60), 1
            ),
            DAMAGED,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value[0].islower() else "",
)  # fmt: skip
def test_headers_that_mislead_are_refused(tmp_path, name, content, message):
    (tmp_path / "x").write_bytes(content())
    with pytest.raises(YolactError, match=message):
        read_image(tmp_path / "x")


@pytest.mark.parametrize("kind", ["PF", "Pf", "hdr"])
def test_float_images_are_refused_before_they_are_decoded(tmp_path, kind):
    header = b"#?RADIANCE\n\n-Y 90000 +X 90000\n" if kind == "hdr" else f"{kind} 90000 90000 -1\n".encode()
    (tmp_path / "x").write_bytes(header)
    with pytest.raises(YolactError, match="has float32 values; convert it"):
        read_image(tmp_path / "x")


def test_an_unknown_kind_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"\0\0\0\x1cftypxxxx" + bytes(100))
    with pytest.raises(YolactError, match="is damaged or not an image"):
        read_image(tmp_path / "x")


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "tiff"])
def test_only_the_first_picture_is_decoded(kind):
    """Decoders would look for all pictures, or keep several at once."""
    pillow = pytest.importorskip("PIL.Image")
    first, *more = (pillow.new("RGB", (50, 40), (shade, 0, 0)) for shade in range(0, 200, 10))
    plain, animated = io.BytesIO(), io.BytesIO()
    first.save(plain, kind, lossless=True)
    first.save(animated, kind, save_all=True, append_images=more, lossless=True)
    found = examine(animated.getvalue())
    assert found.more and not examine(found.data).more
    assert read_header(found.data)[:2] == (50, 40)


def test_text_of_a_png_is_not_decompressed():
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))
    data = png((1, 1))
    assert examine(data[:33] + text + data[33:]).data == data


def test_a_file_larger_than_the_limit(tmp_path, monkeypatch):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(1 << 40)  # takes no space
    monkeypatch.setenv("YOLACT_MAX_IMAGE_BYTES", "1000000")
    with pytest.raises(YolactError, match="has more bytes than the 1,000,000 allowed"):
        read_image(tmp_path / "x.png")
