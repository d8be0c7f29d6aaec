"""The folder of Parquet parts: what is done in it, and what is refused."""

import contextlib
import json

import pytest

pa = pytest.importorskip("pyarrow")

from pyarrow import parquet  # noqa: E402

from yolact_runtime.batch import on_ray  # noqa: E402
from yolact_runtime.batch.listing import Listing, are_done  # noqa: E402
from yolact_runtime.batch.parts import PartsFolder  # noqa: E402
from yolact_runtime.batch.rows import RECORD, failed_row, to_arrow  # noqa: E402
from yolact_runtime.errors import UsageError, YolactError  # noqa: E402


def done_row(path, count=1):
    row = failed_row(path, "")
    rles = [{"size": [4, 4], "counts": "0"}] * count
    return {**row, "height": 4, "width": 4, "area": [16] * count, "rles": rles, "error": None}


def write(folder, name, *rows):
    folder.mkdir(exist_ok=True)
    parquet.write_table(to_arrow(rows), folder / name)


def test_a_new_folder_is_recorded(tmp_path):
    folder = PartsFolder(str(tmp_path / "out"))
    folder.check(resume=False)
    assert len(folder.begin("abc")) == 0
    assert json.loads((tmp_path / "out" / RECORD).read_text()) == {"run": "abc", "state": "running"}
    write(tmp_path / "out", "one.parquet", done_row("a", 2), done_row("b", 3), failed_row("c", "broken"))
    stats = folder.count(set())
    assert json.loads((tmp_path / "out" / RECORD).read_text())["state"] == "running"
    folder.end("abc")
    assert (stats.done, stats.detections, stats.failed) == (2, 5, 1)
    assert json.loads((tmp_path / "out" / RECORD).read_text())["state"] == "done"
    assert folder.count({"one.parquet"}).done == 0


@pytest.mark.parametrize(
    ("found", "rows", "resumed", "right"),
    [
        (4, 0, False, True),
        (3, 0, False, False),
        (5, 0, False, False),
        (3, 0, True, False),
        (10, 6, False, True),
        (9, 6, False, False),
        (7, 6, True, True),
        (3, 6, True, False),
    ],
)
def test_a_run_with_missing_rows_has_not_ended(tmp_path, found, rows, resumed, right):
    listing = Listing(pa.chunked_array([["a", "b", "c", "d"]]), [("t.parquet", 0)] if rows else [], rows)
    folder = PartsFolder(str(tmp_path))
    with contextlib.nullcontext() if right else pytest.raises(YolactError, match="run again with --resume"):
        on_ray._check_complete(folder, found, 4, listing, resumed)


def test_a_run_is_continued(tmp_path):
    folder = PartsFolder(str(tmp_path))
    folder.begin("abc")
    write(tmp_path, "one.parquet", done_row("a"), failed_row("b", "broken"))
    write(tmp_path, "two.parquet", failed_row("c", "broken"))
    whole = (tmp_path / "one.parquet").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / f"cut{size}.parquet").write_bytes(whole[:size])
    folder.check(resume=True)
    done = folder.begin("abc")
    assert are_done(["a", "b", "c"], done).tolist() == [True, False, False]
    assert folder.parts() == ["one.parquet"]
    rows = parquet.read_table(tmp_path / "one.parquet")
    assert rows.column("path").to_pylist() == ["a"] and rows.schema.equals(to_arrow([]).schema)


@pytest.mark.parametrize("scheme", ["local", "dir"])
def test_a_folder_by_an_address(tmp_path, monkeypatch, scheme):
    fsspec = pytest.importorskip("fsspec")
    local = fsspec.filesystem("local")
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address: (local, address.removeprefix("dir://")))
    folder = PartsFolder(f"{scheme}://{tmp_path}/new/out")
    folder.check(resume=False)
    folder.begin("abc")
    assert folder.system.type_name.startswith("local" if scheme == "local" else "py::fsspec")
    assert folder.path == f"{tmp_path}/new/out" and (tmp_path / "new/out" / RECORD).is_file()


@pytest.mark.parametrize("folder", ["file://{}/a%20b", "file://localhost{}/a b"])
def test_an_address_of_this_machine_is_a_path(tmp_path, folder):
    found = PartsFolder(folder.format(tmp_path))
    assert found.path == f"{tmp_path}/a b"
    found.begin("abc")
    assert (tmp_path / "a b" / RECORD).is_file()
    with pytest.raises(UsageError, match="file://there/a names no path of this machine"):
        PartsFolder("file://there/a")


@pytest.mark.parametrize(
    ("columns", "lacks"),
    [
        ({"prices": [1, 2]}, "path"),
        ({"path": ["a"], "area": [[1]]}, "error"),
        ({"path": ["a"], "error": ["b"], "area": [1]}, "area"),
    ],
)
def test_files_of_others_stay(tmp_path, columns, lacks):
    folder = PartsFolder(str(tmp_path))
    folder.begin("abc")
    parquet.write_table(pa.table(columns), tmp_path / "theirs.parquet")
    before = (tmp_path / "theirs.parquet").read_bytes()
    reason = f"theirs.parquet is no part of a run, by its column {lacks}; move it elsewhere"
    with pytest.raises(YolactError, match=reason):
        folder.begin("abc")
    with pytest.raises(YolactError, match=reason):
        folder.count(set())
    assert (tmp_path / "theirs.parquet").read_bytes() == before


def test_what_cannot_be_continued(tmp_path):
    folder = PartsFolder(str(tmp_path))
    write(tmp_path, "one.parquet", done_row("a"))
    with pytest.raises(YolactError, match="another program wrote"):
        folder.check(resume=True)
    (tmp_path / RECORD).write_text(json.dumps({"run": "abc", "state": "running"}))
    with pytest.raises(UsageError, match="1 part of an earlier run; add --resume"):
        folder.check(resume=False)
    with pytest.raises(YolactError, match="written with another engine"):
        folder.begin("abd")
    for text in ("", "[1]", '{"run": 1}', "[" * 10_000, "\xff"):
        (tmp_path / RECORD).write_bytes(text.encode("latin-1"))
        with pytest.raises(YolactError, match="was not written by yolact-infer"):
            folder.check(resume=True)
