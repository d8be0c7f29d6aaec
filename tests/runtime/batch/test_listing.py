"""What sources name for a run on a cluster."""

import hashlib
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

from pyarrow import parquet  # noqa: E402

from yolact_runtime.batch import remote_files  # noqa: E402
from yolact_runtime.batch.forms import inputs_of  # noqa: E402
from yolact_runtime.batch.images import RowSource, image_of  # noqa: E402
from yolact_runtime.batch.listing import are_done, digests, list_sources, read_groups  # noqa: E402
from yolact_runtime.batch.rows import failed_row, to_arrow  # noqa: E402
from yolact_runtime.errors import UsageError, YolactError  # noqa: E402


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "in/b.jpg", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def listed(*names, **how):
    return [os.fsdecode(name) for name in list_sources(names, **how).paths.to_pylist()]


def fetched(names):
    table = pa.table({"path": [os.fsencode(name) for name in names]})
    return pa.concat_tables(remote_files.fetch(table)).to_pylist()


@pytest.mark.parametrize("source", ["in", "in/*.*", "{}/in", "file://{}/in"])
def test_folders_and_patterns_name_images_from_the_root(place, source):
    assert listed(source.format(place)) == [f"{place}/in/a.png", f"{place}/in/b.jpg"]


def test_a_list_on_standard_input(place):
    stream = io.BytesIO(b"in/a.png\ns3://bucket/b.png\n\nin/a.png\n")
    listing = list_sources(["-"], stream=stream)
    assert listing.paths.to_pylist() == [f"{place}/in/a.png".encode(), b"s3://bucket/b.png"]
    assert listing.doubled == 1
    assert listed("-", null=True, stream=io.BytesIO(b"a\nb.png\0\xff.png\0")) == [
        f"{place}/a\nb.png",
        f"{place}/\udcff.png",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, file names are text")
def test_a_name_that_is_no_text_is_read_and_done(place):
    import cv2

    name = os.fsencode(place) + b"/in/\xff.png"
    with Path(os.fsdecode(name)).open("wb") as file:
        file.write(cv2.imencode(".png", np.full((3, 5, 3), 7, np.uint8))[1].tobytes())
    paths = list_sources([f"{place}/in/*.png"]).paths
    assert paths.to_pylist() == [f"{place}/in/a.png".encode(), name]
    for batch in (pa.table({"path": paths}), pa.concat_tables(remote_files.fetch(pa.table({"path": paths})))):
        row = inputs_of(batch)[1]
        assert image_of(row, RowSource([row]).paths[0]).shape == (3, 5, 3)
    written = to_arrow([failed_row(RowSource([row]).paths[0], "")]).column("path").to_pylist()
    assert written == [f"{place}/in/\\udcff.png"]
    assert are_done(paths.to_pylist(), np.sort(digests(written))).tolist() == [False, True]


def test_parquet_of_paths_and_of_bytes(place):
    parquet.write_table(pa.table({"path": ["in/a.png", "s3://b/c.png"], "x": [1, 2]}), "p.parquet")
    (place / "tables").mkdir()
    images = pa.table({"path": ["one", "two", None], "bytes": [b"1", b"2", b"3"]})
    parquet.write_table(images, "tables/t.parquet", row_group_size=2)
    listing = list_sources(["p.parquet", "tables", "tables/t.parquet", f"file://{place}/tables/t.parquet"])
    assert listing.paths.to_pylist() == [f"{place}/in/a.png".encode(), b"s3://b/c.png"]
    table = f"{place}/tables/t.parquet"
    assert listing.groups == [(table, 0), (table, 1)] and listing.rows == 3
    work = pa.table({"file": ["tables/t.parquet"] * 2, "group": [0, 1]})
    rows = pa.concat_tables(read_groups(work, np.sort(digests(["two"])))).to_pylist()
    named = f"sha256:{hashlib.sha256(b'3').hexdigest()}"
    assert [(row["path"], row["bytes"]) for row in rows] == [(b"one", b"1"), (named.encode(), b"3")]


def test_rows_without_bytes_fail_under_names_of_their_own(place):
    images = pa.table({"path": [f"{place}/in/a.png", None, None], "bytes": pa.array([None] * 3, pa.binary())})
    parquet.write_table(images, "t.parquet", row_group_size=2)
    work = pa.table({"file": ["t.parquet"] * 2, "group": [0, 1]})
    rows = pa.concat_tables(read_groups(work, digests([]))).to_pylist()
    names = [f"{place}/in/a.png", "t.parquet: row group 0, row 2", "t.parquet: row group 1, row 1"]
    assert [row["path"].decode() for row in rows] == names
    for row, name in zip(rows, names, strict=True):
        with pytest.raises(YolactError, match=f"^{name}: row has no bytes$"):
            image_of(row, name)


@pytest.mark.parametrize("source", ["mixed", "mixed/*", "{}/mixed/"])
def test_a_folder_of_images_and_parquet_is_refused(place, source):
    (place / "mixed").mkdir()
    (place / "mixed/a.png").touch()
    assert len(listed(source.format(place))) == 1
    parquet.write_table(pa.table({"path": ["a"]}), "mixed/t.parquet")
    with pytest.raises(UsageError, match=r"images and Parquet files; name .*mixed/\*.png or .*/\*.parq"):
        list_sources([source.format(place)])


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"name": ["a"]}, "no column path or bytes"),
        ({"path": [1]}, "path is int64; it must be text"),
        ({"path": ["a", "b", None]}, "row 3 has no path"),
        ({"bytes": ["a"]}, "bytes is string; it must be bytes"),
        (None, "is damaged, or not Parquet"),
    ],
)
def test_wrong_parquet_files_are_refused(place, columns, reason):
    if columns is None:
        (place / "t.parquet").write_bytes(b"PAR1 and nothing")
    else:
        parquet.write_table(pa.table(columns), "t.parquet")
    with pytest.raises(YolactError, match=reason) as caught:
        list_sources(["t.parquet"])
    assert "\n" not in str(caught.value)


def test_row_groups_beyond_the_limit_are_refused(place, monkeypatch):
    parquet.write_table(pa.table({"bytes": [bytes(100)]}), "t.parquet")
    monkeypatch.setenv("YOLACT_MAX_ROW_GROUP_BYTES", "99")
    with pytest.raises(YolactError, match="group of rows with more bytes than"):
        list_sources(["t.parquet"])


@pytest.mark.parametrize("name", ["clip.mp4", "0", "/dev/video7"])
def test_videos_and_cameras_are_refused(place, name):
    (place / "clip.mp4").touch()
    with pytest.raises(UsageError, match="video or camera"):
        list_sources([name])


def test_digests_find_what_is_done():
    names = [f"/images/{number}.jpg" for number in range(500)]
    done = np.sort(digests(names[::3]))
    assert done.nbytes == 16 * len(done)
    assert are_done(names, done).tolist() == [number % 3 == 0 for number in range(500)]
    assert not are_done(names, digests([])).any()


def test_addresses_of_any_file_system():
    import fsspec

    files = fsspec.filesystem("memory")
    for name in ("a.png", "b #1?.png", "c.txt", "deep/d.png"):
        files.pipe(f"/pictures/{name}", name.encode())
    addresses = [f"memory://pictures/{name}" for name in ("a.png", "b #1?.png", "c.txt")]
    assert remote_files.find_files("memory://pictures") == addresses
    assert remote_files.find_files("memory://pictures/*.png") == addresses[:2]
    assert listed("memory://pictures/**/*.png")[-1] == "memory://pictures/deep/d.png"
    rows = fetched([*addresses[:2], "memory://pictures/none.png", "/local.png"])
    assert [row["bytes"] for row in rows] == [b"a.png", b"b #1?.png", None, None]
    assert rows[2]["error"] == "cannot read image memory://pictures/none.png: no such file"
    assert rows[3] == {"path": b"/local.png", "bytes": None, "error": None}
    with pytest.raises(YolactError, match="does not exist"):
        remote_files.find_files("memory://pictures/none.png")
    with pytest.raises(YolactError, match="cannot open nothing://a"):
        remote_files.find_files("nothing://me:secret@a/b")


def test_a_few_files_are_in_memory():
    read = remote_files.fetch(pa.table({"path": [b"/a.png"] * 50}))
    assert [len(table) for table in read] == [16, 16, 16, 2]


def test_images_larger_than_the_limit_are_refused(monkeypatch):
    import fsspec

    fsspec.filesystem("memory").pipe("/pictures/large.png", bytes(100))
    monkeypatch.setenv("YOLACT_MAX_IMAGE_BYTES", "99")
    row = fetched(["memory://pictures/large.png"])[0]
    assert row["bytes"] is None and "more bytes than" in row["error"]


@pytest.mark.parametrize("column", ["path", "bytes"])
def test_texts_that_are_none_end_in_one_line(place, column):
    damaged = pa.array([b"a.png", b"\xff\xfe.png"]).view(pa.string())
    columns = {"path": damaged} | ({"bytes": [b"x", b"y"]} if column == "bytes" else {})
    parquet.write_table(pa.table(columns), "a.parquet")
    with pytest.raises(YolactError, match=r"a\.parquet is damaged"):
        listing = list_sources(["a.parquet"])
        groups = pa.Table.from_pylist([{"file": file, "group": group} for file, group in listing.groups])
        list(read_groups(groups, digests([])))


@pytest.mark.parametrize("column", ["path", "bytes"])
def test_paths_that_are_too_long_are_refused(place, column):
    columns = {"path": ["a.png", "b" * 4096, "c" * 4097]} | (
        {"bytes": [b"x"] * 3} if column == "bytes" else {}
    )
    parquet.write_table(pa.table(columns), "a.parquet")
    with pytest.raises(
        YolactError, match=r"a\.parquet: row 3 has a path of more characters than the 4,096 allowed"
    ):
        listing = list_sources(["a.parquet"])
        groups = pa.Table.from_pylist([{"file": file, "group": group} for file, group in listing.groups])
        list(read_groups(groups, digests([])))
