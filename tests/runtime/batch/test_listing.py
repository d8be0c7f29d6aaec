"""What sources name for a run on a cluster."""

import hashlib
import io

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

from pyarrow import parquet  # noqa: E402

from yolact_runtime.batch import remote_files  # noqa: E402
from yolact_runtime.batch.listing import are_done, digests, list_sources, read_groups  # noqa: E402
from yolact_runtime.errors import UsageError, YolactError  # noqa: E402


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "in/b.jpg", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def listed(*names, **how):
    return list_sources(names, **how).paths.to_pylist()


@pytest.mark.parametrize("source", ["in", "in/*.*", "{}/in", "file://{}/in"])
def test_folders_and_patterns_name_images_from_the_root(place, source):
    assert listed(source.format(place)) == [f"{place}/in/a.png", f"{place}/in/b.jpg"]


def test_a_list_on_standard_input(place):
    stream = io.BytesIO(b"in/a.png\ns3://bucket/b.png\n\nin/a.png\n")
    listing = list_sources(["-"], stream=stream)
    assert listing.paths.to_pylist() == [f"{place}/in/a.png", "s3://bucket/b.png"] and listing.doubled == 1
    assert listed("-", null=True, stream=io.BytesIO(b"a\nb.png\0\xff.png\0")) == [
        f"{place}/a\nb.png",
        f"{place}/\\udcff.png",
    ]


def test_parquet_of_paths_and_of_bytes(place):
    parquet.write_table(pa.table({"path": ["in/a.png", None, "s3://b/c.png"], "x": [1, 2, 3]}), "p.parquet")
    (place / "tables").mkdir()
    images = pa.table({"path": ["one", "two", None], "bytes": [b"1", b"2", b"3"]})
    parquet.write_table(images, "tables/t.parquet", row_group_size=2)
    listing = list_sources(["p.parquet", "tables", "tables/t.parquet", f"file://{place}/tables/t.parquet"])
    assert listing.paths.to_pylist() == [f"{place}/in/a.png", str(place), "s3://b/c.png"]
    table = f"{place}/tables/t.parquet"
    assert listing.groups == [(table, 0), (table, 1)] and listing.rows == 3
    work = pa.table({"file": ["tables/t.parquet"] * 2, "group": [0, 1]})
    rows = pa.concat_tables(read_groups(work, np.sort(digests(["two"])))).to_pylist()
    named = f"sha256:{hashlib.sha256(b'3').hexdigest()}"
    assert [(row["path"], row["bytes"]) for row in rows] == [("one", b"1"), (named, b"3")]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"name": ["a"]}, "no column path or bytes"),
        ({"path": [1]}, "path is int64; it must be text"),
        ({"bytes": ["a"]}, "bytes is string; it must be bytes"),
        (None, "cannot read Parquet file"),
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
    table = pa.table({"path": [*addresses[:2], "memory://pictures/none.png", "/local.png"]})
    rows = remote_files.fetch(table).to_pylist()
    assert [row["bytes"] for row in rows] == [b"a.png", b"b #1?.png", None, None]
    assert rows[2]["error"] == "cannot read image memory://pictures/none.png: no such file"
    assert rows[3] == {"path": "/local.png", "bytes": None, "error": None}
    with pytest.raises(YolactError, match="does not exist"):
        remote_files.find_files("memory://pictures/none.png")
    with pytest.raises(YolactError, match="cannot open nothing://a"):
        remote_files.find_files("nothing://me:secret@a/b")


def test_images_larger_than_the_limit_are_refused(monkeypatch):
    import fsspec

    fsspec.filesystem("memory").pipe("/pictures/large.png", bytes(100))
    monkeypatch.setenv("YOLACT_MAX_IMAGE_BYTES", "99")
    row = remote_files.fetch(pa.table({"path": ["memory://pictures/large.png"]})).to_pylist()[0]
    assert row["bytes"] is None and "more bytes than" in row["error"]
