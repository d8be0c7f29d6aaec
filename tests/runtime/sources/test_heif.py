"""HEIC and AVIF are images, whole and upright, and what is missing to read them is named."""

import contextlib
import importlib
import io
import logging
import struct
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact_runtime import YolactError
from yolact_runtime.errors import UsageError
from yolact_runtime.sources import heif
from yolact_runtime.sources.heif import heif_kind, is_cut_off, reads_heif
from yolact_runtime.sources.images import ImageSource, list_images, read_image
from yolact_runtime.sources.open import has_video, open_source

# Smooth, so that lossy compression changes it little; no two of its turned copies are equal.
PICTURE = cv2.resize(np.random.default_rng(5).integers(0, 256, (3, 4, 3), np.uint8), (256, 128))
KINDS = {"HEIC": "pillow_heif", "AVIF": "PIL._avif"}


@pytest.fixture(params=KINDS)
def kind(request):
    """A format whose libraries are installed."""
    try:
        importlib.import_module(KINDS[request.param])
    except ImportError:
        pytest.skip(f"{KINDS[request.param]} is not installed")
    return request.param


def encoded(kind, image, **options):
    """A file that the format's own library writes; `image` is BGR or BGRA."""
    pillow = pytest.importorskip("PIL.Image")
    if kind == "HEIC":
        importlib.import_module("pillow_heif").register_heif_opener()
    order = [2, 1, 0, 3][: image.shape[2]]
    buffer = io.BytesIO()
    pillow.fromarray(np.ascontiguousarray(image[..., order])).save(
        buffer, "HEIF" if kind == "HEIC" else "AVIF", quality=95, **options
    )
    return buffer.getvalue()


def box(name, *content):
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + name + body


def property_of(data, name):
    """The bytes of the first box `name`."""
    at = data.index(name) - 4
    return data[at : at + struct.unpack_from(">I", data, at)[0]]


def grid(kind, image, rows=2, columns=2, properties=b"", number=0):
    """A file of tiles as telephones write it; `number` properties of the whole, such as `irot`."""
    height, width = image.shape[0] // rows, image.shape[1] // columns
    tiles = [
        encoded(kind, image[y * height : (y + 1) * height, x * width : (x + 1) * width])
        for y in range(rows)
        for x in range(columns)
    ]
    setup = property_of(tiles[0], b"hvcC" if kind == "HEIC" else b"av1C")
    contents = [property_of(tile, b"mdat")[8:] for tile in tiles]
    contents.append(struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, image.shape[1], image.shape[0]))
    count = len(contents)
    code = b"hvc1" if kind == "HEIC" else b"av01"

    def sizes(width, height):
        return box(b"ispe", bytes(4), struct.pack(">II", width, height))

    def meta(start):
        offsets = np.cumsum([start, *map(len, contents)])
        shown = [4, *range(0x85, 0x85 + number)]
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", bytes(4), struct.pack(">H", count)),
            box(b"iloc", bytes(4), b"\x44\0", struct.pack(">H", count), *(
                struct.pack(">HHHII", n + 1, 0, 1, offsets[n], len(contents[n])) for n in range(count)
            )),
            box(b"iinf", bytes(4), struct.pack(">H", count), *(
                box(b"infe", b"\2\0\0\0", struct.pack(">HH", n + 1, 0), code, b"\0")
                for n, code in enumerate([code] * (count - 1) + [b"grid"])
            )),
            box(b"iref", bytes(4), box(
                b"dimg", struct.pack(f">HH{count - 1}H", count, count - 1, *range(1, count))
            )),
            box(
                b"iprp",
                box(b"ipco", setup, sizes(width, height), box(b"pixi", bytes(4), b"\3\x08\x08\x08"),
                    sizes(image.shape[1], image.shape[0]), properties),
                box(b"ipma", bytes(4), struct.pack(">I", count), *(
                    struct.pack(">HB3B", n + 1, 3, 0x81, 2, 3) for n in range(count - 1)
                ), struct.pack(f">HB{len(shown) + 1}B", count, len(shown) + 1, 3, *shown)),
            ),
        )  # fmt: skip

    brand = b"heic" if kind == "HEIC" else b"avif"
    head = box(b"ftyp", brand, bytes(4), b"mif1", brand, b"miaf")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *contents)


def read(tmp_path, data):
    path = tmp_path / "x.heic"
    path.write_bytes(data)
    return read_image(path)


def close(image, expected, limit=4):
    assert image.shape == expected.shape and image.dtype == np.uint8
    assert image.flags.c_contiguous and image.flags.writeable
    assert np.abs(image.astype(int) - expected).mean() < limit


def test_a_picture(tmp_path, kind):
    data = encoded(kind, PICTURE)
    assert heif_kind(data) == kind and reads_heif(kind)
    close(read(tmp_path, data), PICTURE)


def test_a_picture_in_tiles_is_read_whole(tmp_path, kind):
    close(read(tmp_path, grid(kind, PICTURE)), PICTURE)
    close(read(tmp_path, grid(kind, PICTURE, rows=1, columns=4)), PICTURE)


def test_it_is_turned_once(tmp_path, kind):
    turned = grid(kind, PICTURE, properties=box(b"irot", b"\1"), number=1)
    close(read(tmp_path, turned), np.rot90(PICTURE))
    mirrored = grid(kind, PICTURE, properties=box(b"imir", b"\1"), number=1)
    close(read(tmp_path, mirrored), PICTURE[:, ::-1])


def test_orientation_in_exif_is_only_a_copy(tmp_path, kind):
    """The standard gives it no effect: Pillow writes `irot` for it, pillow-heif does not."""
    exif = pytest.importorskip("PIL.Image").Exif()
    exif[0x112] = 6
    data = encoded(kind, PICTURE, exif=exif.tobytes())
    close(read(tmp_path, data), np.rot90(PICTURE, 3) if b"irot" in data else PICTURE)


def test_alpha_is_dropped(tmp_path, kind):
    alpha = np.linspace(0, 255, PICTURE.shape[1]).astype(np.uint8)
    image = np.dstack([PICTURE, np.tile(alpha, (PICTURE.shape[0], 1))])
    close(read(tmp_path, encoded(kind, image)), PICTURE)


def test_ten_bits_are_scaled(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.ascontiguousarray(PICTURE[..., ::-1]).astype(np.uint16) * 257
    file = pillow_heif.from_bytes("RGB;16", PICTURE.shape[1::-1], pixels.tobytes())
    buffer = io.BytesIO()
    file.save(buffer, quality=95)
    close(read(tmp_path, buffer.getvalue()), PICTURE)


def test_grey(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    buffer = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(PICTURE[..., 0]).save(buffer, "HEIF", quality=95)
    close(read(tmp_path, buffer.getvalue()), np.repeat(PICTURE[..., :1], 3, axis=2))


def test_what_is_cut_off_is_refused(tmp_path, kind):
    """libheif would leave out tiles. Nor does it notice the zeros of an interrupted copy."""
    data = grid(kind, PICTURE)
    for length in (*range(20, len(data), len(data) // 60), *range(len(data) - 9, len(data))):
        with pytest.raises(YolactError, match=r"x\.heic (is cut off|is damaged|cannot be decoded)"):
            read(tmp_path, data[:length])
    for length in range(data.index(b"mdat") + 8, len(data) - 100, len(data) // 30):
        with pytest.raises(YolactError, match=r"x\.heic is cut off; copy it again"):
            read(tmp_path, data[:length] + bytes(len(data) - length))


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_damaged_boxes_are_reported_by_two_exceptions(items, locations):
    data = box(b"meta", bytes(4), box(b"iinf", items), box(b"iloc", locations))
    with contextlib.suppress(struct.error, IndexError):
        is_cut_off(data)


def test_data_after_the_end_is_ignored(tmp_path, kind):
    """The video of a motion photo."""
    data = encoded(kind, PICTURE)
    np.testing.assert_array_equal(read(tmp_path, data + b"\0\0\0\x18mpvd" + bytes(16)), read(tmp_path, data))


def test_the_limit_on_pixels(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("YOLACT_MAX_PIXELS", "1000")
    with pytest.raises(YolactError, match="256 x 128 pixels, more than the 1,000 allowed"):
        read(tmp_path, encoded(kind, PICTURE))


def test_several_pictures(tmp_path, kind, caplog):
    more = pytest.importorskip("PIL.Image").fromarray(255 - PICTURE)
    data = encoded(kind, PICTURE, save_all=True, append_images=[more])
    with caplog.at_level(logging.WARNING):
        close(read(tmp_path, data), PICTURE)
    (line,) = caplog.messages
    assert line.endswith("x.heic is animated or has several pictures; only the first is read")


def test_a_sequence_without_a_still_picture(tmp_path):
    pytest.importorskip("pillow_heif")
    data = box(b"ftyp", b"hevc", bytes(4)) + box(b"moov", bytes(50))
    with pytest.raises(YolactError, match=r"x\.heic is a sequence without a still picture; convert it"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("brands", "expected"),
    [
        (b"heic", "HEIC"), (b"heix", "HEIC"), (b"hevc", "HEIC"), (b"mif1", "HEIC"), (b"msf1", "HEIC"),
        (b"avif", "AVIF"), (b"avis", "AVIF"), (b"mif1miafavif", "AVIF"), (b"msf1avis", "AVIF"),
        (b"mp42", ""), (b"qt  ", ""), (b"isomavc1", ""), (b"crx ", ""), (b"", ""),
    ],
)  # fmt: skip
def test_brands(brands, expected):
    data = box(b"ftyp", brands[:4], bytes(4) if brands else b"", brands[4:])
    assert heif_kind(data + b"\0\0\0\x08free") == expected
    assert heif_kind(data[:7]) == ""


def test_it_is_an_image_whatever_its_name(tmp_path, monkeypatch):
    """Without its packages it is not opened as a video, and the packages are named."""
    monkeypatch.setattr("yolact_runtime.sources.heif.reads_heif", lambda kind: False)
    for name in ("a.heic", "b.mov", "c.mp4", "d", "e.jpg", "f.avif"):
        (tmp_path / name).write_bytes(box(b"ftyp", b"heic", bytes(4), b"mif1") + box(b"mdat", bytes(50)))
        source = open_source([str(tmp_path / name)])
        assert isinstance(source, ImageSource) and not has_video(source)
        with pytest.raises(YolactError, match=r'is HEIC, which needs .*pip install "yolact\[heif\]"$'):
            next(iter(source)).read()


def test_folders_count_it_only_if_it_can_be_read(tmp_path, monkeypatch, caplog):
    for name in ("a.png", "b.heic", "c.HIF", "d.avif", "e.mp4"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr("yolact_runtime.sources.folders.reads_heif", lambda kind: kind == "AVIF")
    assert [path.name for path in list_images([tmp_path])] == ["a.png", "d.avif"]
    assert f"{tmp_path}: 3 files skipped: 1 .heic, 1 .hif, 1 .mp4; for HEIC and AVIF, run: pip" in caplog.text
    (tmp_path / "a.png").unlink()
    monkeypatch.setattr("yolact_runtime.sources.folders.reads_heif", lambda kind: False)
    with pytest.raises(
        UsageError, match=r"holds no image; 4 files skipped: 1 \.heic, 1 \.hif, 1 \.avif, 1 \.mp4"
    ):
        list_images([tmp_path])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_packages_are_noticed_without_an_import(kind, monkeypatch):
    monkeypatch.setattr(heif, "installed", lambda name: False)
    assert not reads_heif.__wrapped__(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_packages_that_do_not_load(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(heif, "reads_heif", lambda kind: True)
    for name in ("pillow_heif", "PIL.AvifImagePlugin"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(YolactError, match=r"^image .*x\.heic\b") as raised:
        read(tmp_path, box(b"ftyp", kind.lower().encode(), bytes(4)) + box(b"mdat", bytes(50)))
    assert "\n" not in str(raised.value)
